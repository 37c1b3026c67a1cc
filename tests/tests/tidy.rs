//! What a machine can check about the shape of the code, it checks here.
//!
//! The table of DESIGN ("Shape of the code") stands below as `ARROWS`; a new arrow between crates is
//! a commit of its own, with its reason.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Which of our crates a crate may use.
const ARROWS: &[(&str, &[&str])] = &[
    ("gabion-types", &[]),
    ("gabion-wire", &["gabion-types"]),
    ("gabion-format", &["gabion-types"]),
    ("gabion-store", &["gabion-types", "gabion-wire", "gabion-format"]),
    ("gabion-volume", &["gabion-types", "gabion-wire"]),
    ("gabion-cluster", &["gabion-types", "gabion-wire"]),
    ("gabion-nbd", &["gabion-types"]),
    (
        "gabion-node",
        &[
            "gabion-types",
            "gabion-wire",
            "gabion-store",
            "gabion-volume",
            "gabion-cluster",
            "gabion-nbd",
        ],
    ),
    (
        "gabion-sim",
        &[
            "gabion-types",
            "gabion-wire",
            "gabion-format",
            "gabion-store",
            "gabion-volume",
            "gabion-cluster",
            "gabion-nbd",
            "gabion-node",
        ],
    ),
    ("gabion-engine", &["gabion-types", "gabion-wire"]),
    ("gabion-api", &["gabion-types"]),
    // `cluster` and `wire`: the consensus log carries the map's commands, and the data plane cuts
    // the bytes of a socket into messages before a node sees them. `store`: what to write onto a
    // new disk. `volume` and `store`: their events and counters are told to operators.
    (
        "gabion-daemon",
        &[
            "gabion-types",
            "gabion-wire",
            "gabion-cluster",
            "gabion-store",
            "gabion-volume",
            "gabion-node",
            "gabion-engine",
            "gabion-api",
        ],
    ),
    // `store`: a disk is looked at offline by the code that opens it in a node.
    ("gabion", &["gabion-types", "gabion-store", "gabion-daemon", "gabion-sim", "gabion-api"]),
    // `wire`: what a stranger says on the peers' port is well formed, to get further in. `sim`: as
    // it is in a debug build, to compare with the released binary.
    (
        "gabion-tests",
        &["gabion-types", "gabion", "gabion-harness", "gabion-sim", "gabion-api", "gabion-wire"],
    ),
    ("gabion-harness", &["gabion-types", "gabion"]),
    ("gabion-benches", &["gabion-api", "gabion-harness", "gabion-types"]),
];

/// Crates without a clock, chance, I/O, threads, locks or `async`.
const PURE: &[&str] = &["types", "wire", "format", "store", "volume", "cluster", "nbd", "node"];

/// What a pure crate may depend on besides our own crates.
const PURE_DEPENDENCIES: &[&str] = &[
    "bytes",
    "crc32fast",
    "thiserror",
    "serde",
    "serde_json",
    "zerocopy",
    "hmac",
    "sha2",
    "proptest",
    "proptest-state-machine",
];

/// What a pure crate's code never mentions.
const IMPURE_WORDS: &[&str] = &[
    "tokio",
    "io_uring",
    "std::time::Instant",
    "SystemTime",
    "std::thread",
    "std::fs",
    "std::net",
    "std::env",
    "std::process",
    "rand::",
    "Mutex",
    "RwLock",
    "mpsc",
    "Atomic",
    "thread_local!",
    "static mut",
    "OnceLock",
    "LazyLock",
    "async fn",
    "println!",
];

/// What the simulator must not reach; it may read the wall clock to keep to a time budget.
const NOT_IN_SIM: &[&str] = &["tokio", "io-uring", "gabion-engine", "gabion-api", "gabion-daemon"];

/// A file holds one concept; counted without its tests.
const FILE_LINES_MAX: usize = 800;
/// A function longer than this is an exception.
const FUNCTION_LINES: usize = 70;
/// No function is longer than this.
const FUNCTION_LINES_MAX: usize = 140;
/// So many functions in 100 may be exceptions.
const LONG_FUNCTIONS_PERCENT: usize = 2;

const PROMISES: &[&str] = &[
    "acked-survives",
    "flush-means-flush",
    "one-register",
    "one-owner",
    "majority-first",
    "no-silent-corruption",
    "hold-not-fail",
    "bounded",
    "self-describing",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ lies in the root").into()
}

/// The directories of all members: `crates/*`, `tests`, `tests/harness`, `benches`.
fn members() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir(root().join("crates"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .chain(["tests", "tests/harness", "benches"].map(|member| root().join(member)))
        .filter(|path| path.join("Cargo.toml").exists())
        .collect();
    found.sort();
    found
}

fn manifest(member: &Path) -> toml::Table {
    let path = member.join("Cargo.toml");
    fs::read_to_string(&path).unwrap().parse().unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

fn package_name(manifest: &toml::Table) -> String {
    manifest["package"]["name"].as_str().unwrap().to_owned()
}

fn dependencies(manifest: &toml::Table) -> BTreeSet<String> {
    ["dependencies", "dev-dependencies", "build-dependencies"]
        .iter()
        .filter_map(|table| manifest.get(*table)?.as_table())
        .flat_map(|table| table.keys().cloned())
        .collect()
}

/// All files below a directory whose name ends so, in a stable order; `target` and dotted
/// directories are left out.
fn files(below: &Path, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut open = vec![below.to_owned()];
    while let Some(directory) = open.pop() {
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        for path in entries.map(|entry| entry.unwrap().path()) {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            let skipped = name == "target" || name == "gabion-data" || name == ".git";
            if path.is_dir() && !skipped && !path.is_symlink() {
                open.push(path);
            } else if path.is_file() && name.ends_with(ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

/// One source file, its tests apart.
struct Source {
    path: PathBuf,
    code: String,
    tests: String,
}

impl Source {
    /// Tests are files in a `tests` directory, `tests.rs`, and what follows `#[cfg(test)]` before a
    /// `mod … {`: by custom the end of a file. The simulator is a test from end to end.
    fn read(path: PathBuf) -> Self {
        let text = fs::read_to_string(&path).unwrap();
        let inner = path.strip_prefix(root()).unwrap();
        let is_test = inner.ends_with("tests.rs")
            || inner.components().any(|part| part.as_os_str() == "tests");
        if is_test {
            return Self { path, code: String::new(), tests: text };
        }
        let lines: Vec<&str> = text.lines().collect();
        let split = lines
            .windows(2)
            .position(|pair| {
                pair[0].trim() == "#[cfg(test)]"
                    && pair[1].trim_start().starts_with("mod ")
                    && pair[1].trim_end().ends_with('{')
            })
            .unwrap_or(lines.len());
        let (code, tests) = lines.split_at(split);
        Self { path, code: code.join("\n"), tests: tests.join("\n") }
    }

    fn shown(&self) -> String {
        self.path.strip_prefix(root()).unwrap().display().to_string()
    }
}

fn sources() -> Vec<Source> {
    ["crates", "tests", "benches"]
        .iter()
        .flat_map(|part| files(&root().join(part), ".rs"))
        .map(Source::read)
        .collect()
}

fn fail_on(what: &str, found: &[String]) {
    assert!(found.is_empty(), "{what}:\n  {}", found.join("\n  "));
}

#[test]
fn arrows_between_crates_are_those_of_the_table() {
    let table: BTreeMap<&str, &[&str]> = ARROWS.iter().copied().collect();
    let mut wrong = Vec::new();
    for member in members() {
        let manifest = manifest(&member);
        let name = package_name(&manifest);
        let Some(may_use) = table.get(name.as_str()) else {
            wrong.push(format!("{name} is not in the table"));
            continue;
        };
        for used in dependencies(&manifest).iter().filter(|used| used.starts_with("gabion")) {
            if !may_use.contains(&used.as_str()) {
                wrong.push(format!("{name} -> {used}"));
            }
        }
    }
    fail_on("arrows that the table does not have", &wrong);
}

#[test]
fn pure_crates_depend_on_pure_things() {
    let mut wrong = Vec::new();
    for name in PURE {
        let manifest = manifest(&root().join("crates").join(name));
        for used in dependencies(&manifest) {
            if !used.starts_with("gabion-") && !PURE_DEPENDENCIES.contains(&used.as_str()) {
                wrong.push(format!("{name} -> {used}"));
            }
        }
    }
    let sim = dependencies(&manifest(&root().join("crates/sim")));
    wrong
        .extend(NOT_IN_SIM.iter().filter(|no| sim.contains(**no)).map(|no| format!("sim -> {no}")));
    fail_on("dependencies that a pure crate may not have", &wrong);
}

#[test]
fn pure_crates_do_not_mention_the_world() {
    let mut wrong = Vec::new();
    for name in PURE {
        for source in files(&root().join("crates").join(name).join("src"), ".rs") {
            let source = Source::read(source);
            for (number, line) in source.code.lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                for word in IMPURE_WORDS.iter().filter(|word| code.contains(**word)) {
                    wrong.push(format!("{}:{}: {word}", source.shown(), number + 1));
                }
            }
        }
    }
    fail_on("a pure crate reaches for the world", &wrong);
}

/// Rules of the protocol can be switched off in tests of the simulator, and in nothing that is
/// released: only its dev-dependencies turn that feature on.
#[test]
fn rules_are_switched_off_in_tests_only() {
    let mut on = Vec::new();
    for member in members() {
        let manifest = manifest(&member);
        let name = package_name(&manifest);
        for table in ["dependencies", "dev-dependencies", "build-dependencies", "features"] {
            let entries = manifest.get(table).and_then(|table| table.as_table());
            let mentions =
                |(_, value): &(&String, &toml::Value)| value.to_string().contains("flaws");
            let found = entries.into_iter().flatten().filter(mentions);
            on.extend(found.map(|(key, _)| format!("{name} {table} {key}")));
        }
    }
    assert_eq!(on, ["gabion-sim dev-dependencies gabion-types"]);
}

#[test]
fn unsafe_code_lives_in_the_engine() {
    let mut wrong = Vec::new();
    for source in sources() {
        let inner = source.shown();
        if inner.starts_with("crates/engine/") || inner.ends_with("tidy.rs") {
            continue;
        }
        for (number, line) in source.code.lines().chain(source.tests.lines()).enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            if code.contains("unsafe {")
                || code.contains("unsafe fn")
                || code.contains("unsafe impl")
            {
                wrong.push(format!("{inner}:{}", number + 1));
            }
        }
    }
    fail_on("unsafe outside the engine", &wrong);
}

#[test]
fn files_hold_one_concept() {
    let long: Vec<String> = sources()
        .iter()
        .filter(|source| source.code.lines().count() > FILE_LINES_MAX)
        .map(|source| format!("{}: {} lines", source.shown(), source.code.lines().count()))
        .collect();
    fail_on(&format!("files of more than {FILE_LINES_MAX} lines without their tests"), &long);
}

/// Name and length of each function in rustfmt's layout: its closing brace stands in a line of its
/// own, as far indented as its `fn`.
fn functions(code: &str) -> Vec<(String, usize, usize)> {
    let lines: Vec<&str> = code.lines().collect();
    let mut found = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let bare = line.trim_start();
        let indent = line.len() - bare.len();
        let Some(name) = function_name(bare) else {
            continue;
        };
        let closing = format!("{}}}", " ".repeat(indent));
        let declared = |line: &str| {
            line.trim_end().ends_with(';') && line.len() - line.trim_start().len() == indent
        };
        if bare.ends_with(';') || bare.ends_with('}') {
            found.push((name, start + 1, 1));
            continue;
        }
        let end = lines[start + 1..].iter().position(|line| *line == closing || declared(line));
        found.push((name, start + 1, end.map_or(1, |end| end + 2)));
    }
    found
}

fn function_name(line: &str) -> Option<String> {
    let mut words = line.split_whitespace().peekable();
    while let Some(word) = words.next() {
        if word == "fn" {
            let name = words.next()?;
            return Some(name.split(['(', '<']).next()?.to_owned());
        }
        let qualifier = word.starts_with("pub")
            || ["async", "const", "unsafe", "crate)", "super)"].contains(&word);
        if !qualifier {
            return None;
        }
    }
    None
}

#[test]
fn functions_fit_a_screen() {
    let mut count = 0;
    let mut long = Vec::new();
    let mut too_long = Vec::new();
    for source in sources() {
        for (name, line, length) in functions(&source.code) {
            count += 1;
            let shown = format!("{}:{line}: {name} has {length} lines", source.shown());
            if length > FUNCTION_LINES_MAX {
                too_long.push(shown);
            } else if length > FUNCTION_LINES {
                long.push(shown);
            }
        }
    }
    fail_on(&format!("functions of more than {FUNCTION_LINES_MAX} lines"), &too_long);
    let allowed = count * LONG_FUNCTIONS_PERCENT / 100;
    assert!(
        long.len() <= allowed,
        "{} of {count} functions have more than {FUNCTION_LINES} lines, {allowed} may:\n  {}",
        long.len(),
        long.join("\n  ")
    );
}

#[test]
fn functions_are_measured_right() {
    let code = "fn a() {}\nimpl X {\n    pub(crate) fn b(\n        x: u8,\n    ) -> u8 {\n        x\n    }\n}\n\
                trait T {\n    fn c(&self);\n    fn d(\n        &self,\n    );\n}\n";
    let lengths: Vec<(String, usize)> =
        functions(code).into_iter().map(|(name, _, length)| (name, length)).collect();
    let expected =
        [("a", 1), ("b", 5), ("c", 1), ("d", 3)].map(|(name, length)| (name.to_owned(), length));
    assert_eq!(lengths, expected);
}

/// Tags of the form `// rule: area/name, area/other`, at the start of a comment; a sentence may follow.
fn tags(text: &str, kind: &str) -> BTreeSet<String> {
    let mark = format!("// {kind}: ");
    let mut found = BTreeSet::new();
    for (_, rest) in text.lines().filter_map(|line| line.split_once(&mark)) {
        for word in rest.split(' ') {
            let tag = word.trim_end_matches([',', '.', ';', ':']);
            found.insert(tag.to_owned());
            if !word.ends_with(',') {
                break;
            }
        }
    }
    found
}

#[test]
fn tags_are_read_from_comments() {
    let text = "// rule: a/b\n/// rule: c/d, e/f. And why.\n// a rule: no\n";
    assert_eq!(tags(text, "rule"), ["a/b", "c/d", "e/f"].map(str::to_owned).into());
}

/// In code and in tests; what the simulator says counts as a test.
fn tags_by_side(kind: &str) -> (BTreeMap<String, String>, BTreeSet<String>) {
    let mut in_code = BTreeMap::new();
    let mut in_tests = BTreeSet::new();
    for source in sources().iter().filter(|source| !source.shown().ends_with("tidy.rs")) {
        let found = tags(&source.code, kind);
        if source.shown().starts_with("crates/sim/") {
            in_tests.extend(found);
        } else {
            in_code.extend(found.into_iter().map(|tag| (tag, source.shown())));
        }
        in_tests.extend(tags(&source.tests, kind));
    }
    (in_code, in_tests)
}

#[test]
fn every_rule_in_the_code_has_a_test() {
    let (in_code, in_tests) = tags_by_side("rule");
    let untested: Vec<String> = in_code
        .iter()
        .filter(|(tag, _)| !in_tests.contains(*tag))
        .map(|(tag, at)| format!("{tag} ({at})"))
        .collect();
    fail_on("rules without a test of the same tag", &untested);
    let odd: Vec<String> =
        in_code.keys().chain(&in_tests).filter(|tag| !tag.contains('/')).cloned().collect();
    fail_on("rule tags have the form area/name", &odd);
}

#[test]
fn promises_are_those_of_the_design_and_tested() {
    let (in_code, in_tests) = tags_by_side("promise");
    let unknown: Vec<String> = in_code
        .keys()
        .chain(&in_tests)
        .filter(|tag| !PROMISES.contains(&tag.as_str()))
        .cloned()
        .collect();
    fail_on("promises that the design does not have", &unknown);
    let untested: Vec<String> =
        in_code.keys().filter(|tag| !in_tests.contains(*tag)).cloned().collect();
    fail_on("promises without a test of the same tag", &untested);
}

#[test]
fn each_crate_has_a_page() {
    let missing: Vec<String> = members()
        .into_iter()
        .filter(|member| member.starts_with(root().join("crates")))
        .filter(|member| {
            fs::read_to_string(member.join("README.md"))
                .map_or(true, |page| page.lines().count() < 5)
        })
        .map(|member| member.display().to_string())
        .collect();
    fail_on("crates without a README.md that says what they are for", &missing);
}

/// A page is its crate's documentation, and what stands in it between bare fences is compiled.
#[test]
fn pages_name_the_language_of_what_they_quote() {
    let crates = members().into_iter().filter(|member| member.starts_with(root().join("crates")));
    let bare = |member: std::path::PathBuf| {
        let page = fs::read_to_string(member.join("README.md")).unwrap_or_default();
        let fences = page.lines().filter(|line| line.starts_with("```"));
        let bare = fences.step_by(2).filter(|line| line.trim() == "```").count();
        (bare > 0).then(|| format!("{}: {bare} without a language", member.display()))
    };
    fail_on("crates' pages with bare fences", &crates.filter_map(bare).collect::<Vec<_>>());
}

#[test]
fn nothing_is_left_for_later_in_silence() {
    let words =
        [concat!("to", "do!("), concat!("FIX", "ME"), concat!("XX", "X"), concat!("#[ign", "ore")];
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| !source.shown().ends_with("tidy.rs")) {
        for text in [&source.code, &source.tests] {
            for word in words.iter().filter(|word| text.contains(**word)) {
                found.push(format!("{}: {word}", source.shown()));
            }
        }
    }
    fail_on("left open", &found);
}

#[test]
fn the_project_speaks_of_itself_alone() {
    let words = [
        concat!("crates", ".io"),
        concat!("py", "pi.org"),
        concat!("pythonhosted", ".org"),
        concat!("/wo", "rk/"),
        concat!("/tmp/", "brief"),
        concat!("target", "-heavy"),
    ];
    let mut found = Vec::new();
    let endings = [".rs", ".md", ".toml", ".proto", ".sh", ".txt", ".py", "run"];
    for path in endings.iter().flat_map(|ending| files(&root(), ending)) {
        let Ok(text) = fs::read_to_string(&path) else {
            continue;
        };
        for word in words.iter().filter(|word| text.contains(**word)) {
            found.push(format!("{}: {word}", path.display()));
        }
    }
    fail_on("words of a workplace", &found);
}
