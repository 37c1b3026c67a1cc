//! The console in a real browser against a real cluster: by keyboard only, in light, dark and narrow.

// A test fails by a panic; helpers of tests do too.
#![allow(clippy::unwrap_used)]

use gabion::writer::{Writer, WriterPlan};
use gabion_tests::browser::{Browser, ENTER, ESCAPE, Looks, TAB};
use gabion_tests::fixture::wait;
use gabion_tests::http;
use gabion_tests::{Cluster, Shape, needs};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

const SHOWN: Duration = Duration::from_secs(20);
const REBUILT: Duration = Duration::from_secs(90);
const PAGES: [&str; 6] = ["overview", "nodes", "volumes", "events", "settings", "drills"];
const WIDE: Looks = Looks { width: 1200, height: 900, dark: false };

/// Of node 1.
fn address(cluster: &Cluster) -> String {
    cluster.local.dir.entry(1).unwrap().http.clone()
}

/// Where the pictures are left, to be looked at.
fn pictures() -> PathBuf {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("console");
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// Each page as it looks now, in light, dark and narrow; what it says of itself is checked.
fn photograph(browser: &Browser, url: &str, moment: &str) {
    let narrow = Looks { width: 360, height: 740, dark: false };
    let looks = [("light", WIDE), ("dark", Looks { dark: true, ..WIDE }), ("narrow", narrow)];
    for (name, looks) in looks {
        browser.look(looks);
        for page in PAGES {
            browser.open(&format!("{url}#{page}"));
            browser.wait(page, SHOWN, "document.querySelector('main h1') !== null");
            browser.wait(
                "it is alive",
                SHOWN,
                "document.getElementById('live').textContent === 'live'",
            );
            std::thread::sleep(Duration::from_millis(400));
            browser.screenshot(&pictures().join(format!("{moment}-{page}-{name}.png")));
            let wide = browser.value("document.documentElement.scrollWidth").as_u64().unwrap();
            assert!(wide <= u64::from(looks.width), "{page} in {name} is {wide} wide");
            check_names(browser, page);
        }
    }
    browser.look(WIDE);
}

/// What a screen reader tells of a page.
fn check_names(browser: &Browser, page: &str) {
    let nameless = "[...document.querySelectorAll('button, input, select, a, progress, [role=img], table, main section')]\
        .filter((e) => e.getClientRects().length && !(e.getAttribute('aria-label') ?? '').trim() \
            && !e.textContent.trim() && !(e.labels?.length)).map((e) => e.outerHTML.slice(0, 80)).join('\\n')";
    assert_eq!(browser.text(nameless), "", "{page}: nothing tells what these are");
    assert_eq!(browser.value("document.querySelectorAll('h1').length"), 1, "{page}");
    let current = browser.text("document.querySelector('nav [aria-current=page]').hash");
    assert_eq!(current, format!("#{page}"));
}

fn has_row(name: &str) -> String {
    format!(
        "[...document.querySelectorAll('main tbody tr')].some((row) => row.cells[0].textContent === '{name}')"
    )
}

fn create_by_keyboard(browser: &Browser) {
    browser.press(&TAB.to_string());
    assert_eq!(browser.text("document.activeElement.textContent"), "Skip to the content");
    browser.tab_to("Volumes");
    browser.press(&ENTER.to_string());
    browser.wait("the page", SHOWN, "document.querySelector('h1')?.textContent === 'Volumes'");
    assert_eq!(browser.text("document.activeElement.id"), "main", "what comes next is the page");
    browser.tab_to("Create a volume");
    browser.press(&ENTER.to_string());
    browser.wait("the dialog", SHOWN, "document.querySelector('dialog[open]') !== null");
    browser.press("vm 1");
    browser.press(&TAB.to_string());
    browser.select_all();
    browser.press("1G");
    browser.press(&ENTER.to_string());
    let wrong = "document.querySelector('dialog .wrong').textContent";
    browser.wait("it is refused", SHOWN, &format!("{wrong}.includes('two things')"));
    browser.select_all();
    browser.press("128MiB");
    browser.press(&ENTER.to_string());
    browser.wait("the cluster refuses the name", SHOWN, &format!("{wrong}.includes('name')"));
    browser.press(&ESCAPE.to_string());
    browser.wait("it is closed", SHOWN, "document.querySelector('dialog') === null");
    assert_eq!(browser.text("document.activeElement.textContent"), "Create a volume");
    browser.press(&ENTER.to_string());
    browser.press("vm1");
    browser.press(&TAB.to_string());
    browser.select_all();
    browser.press("128MiB");
    browser.press(&ENTER.to_string());
    browser.wait("it is made", SHOWN, &has_row("vm1"));
    browser.wait(
        "it is told",
        SHOWN,
        "document.getElementById('said').textContent === 'vm1 is made'",
    );
}

fn delete_by_keyboard(browser: &Browser, url: &str) {
    browser.open(&format!("{url}#volumes"));
    browser.wait("the volume", SHOWN, &has_row("vm1"));
    browser.tab_to("Delete vm1");
    browser.press(&ENTER.to_string());
    browser.press("vm2");
    browser.press(&ENTER.to_string());
    let wrong = "document.querySelector('dialog .wrong').textContent.includes('vm1')";
    browser.wait("another name is no word for it", SHOWN, wrong);
    browser.select_all();
    browser.press("vm1");
    browser.press(&ENTER.to_string());
    browser.wait("it is gone", SHOWN, &format!("!{}", has_row("vm1")));
}

fn change_by_keyboard(browser: &Browser, cluster: &Cluster, url: &str) {
    browser.open(&format!("{url}#settings"));
    browser.wait("the settings", SHOWN, &has_row("rebuild.wait"));
    browser.tab_to("Change rebuild.wait");
    browser.press(&ENTER.to_string());
    browser.select_all();
    browser.press("1s");
    browser.press(&ENTER.to_string());
    browser.wait("it is set", SHOWN, "document.querySelector('dialog') === null");
    let shown = cluster.json(&["settings", "get", "rebuild.wait"]);
    assert_eq!(shown["value"], "1s");
}

#[test]
fn a_person_makes_a_volume_sees_a_rebuild_end_and_deletes_it_by_keyboard() {
    if !needs(&["chromium", "chromedriver"]) {
        return;
    }
    let mut cluster = Cluster::start();
    let url = format!("http://{}/", address(&cluster));
    let browser = Browser::start();
    browser.look(WIDE);
    browser.open(&url);
    browser.wait(
        "it is healthy",
        SHOWN,
        "document.getElementById('health').textContent === 'healthy'",
    );
    create_by_keyboard(&browser);
    change_by_keyboard(&browser, &cluster, &url);

    let plan = WriterPlan { pace: Duration::from_millis(2), ..cluster.writer_plan("vm1", 96, 1) };
    let writer = Writer::start(plan);
    wait("the first fill", Duration::from_secs(60), || writer.progress().filled);
    cluster.set("rebuild.wait", "30s");
    cluster.kill(3);
    browser.open(&format!("{url}#overview"));
    let health = |word: &str| format!("document.getElementById('health').textContent === '{word}'");
    browser.wait("it is told", SHOWN, &health("degraded"));
    let problem = "document.querySelector('main').textContent.includes('node3 is silent')";
    browser.wait("and what it is", SHOWN, problem);
    let unsafe_now = "document.querySelector('[aria-label=Safety] .big').textContent === 'No'";
    browser.wait("and what it means", SHOWN, unsafe_now);
    photograph(&browser, &url, "degraded");
    browser.open(&format!("{url}#overview"));
    cluster.set("rebuild.wait", "1s");
    browser.wait("copies are made", REBUILT, "document.querySelector('progress') !== null");
    let over = "document.querySelector('[aria-label=Rebuild]').textContent.includes('Nothing is being copied')";
    browser.wait("the rebuild ends, as the page shows it", REBUILT, over);
    cluster.start_node(3);
    browser.wait("all is well", REBUILT, &health("healthy"));
    browser.open(&format!("{url}#events"));
    let told = "[...document.querySelectorAll('main tbody tr')].some((row) => row.cells[4].textContent.includes('node 3 started'))";
    browser.wait("it is an event", SHOWN, told);
    photograph(&browser, &url, "healthy");
    let left = writer.stop();
    assert_eq!(left.wrong, None);

    delete_by_keyboard(&browser, &url);
    let foreign = format!(
        "performance.getEntriesByType('resource').filter((e) => !e.name.startsWith('{url}') && !e.name.startsWith('data:')).map((e) => e.name).join()"
    );
    assert_eq!(browser.text(&foreign), "", "asked of another address");
    let complaints = browser.complaints().into_iter();
    // A change was refused on purpose.
    let unexpected: Vec<String> = complaints.filter(|it| !it.contains("status of 400")).collect();
    assert!(unexpected.is_empty(), "{unexpected:#?}");
}

/// Started from the page; it kills the node that the page comes from, too.
#[test]
fn a_person_runs_drills_from_the_page_and_stops_them() {
    if !needs(&["chromium", "chromedriver"]) {
        return;
    }
    let cluster = Cluster::start();
    let browser = Browser::start();
    browser.look(WIDE);
    browser.open(&format!("http://{}/#drills", address(&cluster)));
    let now = "document.querySelector('[aria-label=Now] .big')?.textContent";
    let rounds = "document.querySelectorAll('[aria-label=Earlier] details').length";
    browser.wait("nothing runs", SHOWN, &format!("{now} === 'No drill runs.'"));
    let ask = |ticks_off: &[&str], seconds: &str| {
        browser.tab_to("Run drills");
        browser.press(&ENTER.to_string());
        browser.wait("it asks", SHOWN, "document.querySelector('dialog[open]') !== null");
        for words in ticks_off {
            let tick = format!(
                "[...document.querySelectorAll('dialog label.tick')].find((l) => l.textContent === '{words}').click() ?? 1"
            );
            browser.value(&tick);
        }
        browser.value("document.querySelector('dialog input[type=number]').focus() ?? 1");
        browser.select_all();
        browser.press(seconds);
        browser.press(&ENTER.to_string());
        browser.wait("it runs", SHOWN, "document.querySelector('dialog') === null");
    };
    ask(&["Freeze each node", "Slow each node down"], "2");
    browser.wait("a node is hurt", REBUILT, &format!("{now}?.startsWith('kill node')"));
    browser.wait("it is over and kept", REBUILT, &format!("{rounds} === 1"));
    let kept = cluster.json(&["drill", "list", "--dir", &cluster.dir.display().to_string()]);
    let drills = kept["kept"][0]["drills"].as_array().unwrap();
    assert_eq!(drills.len(), 3, "{kept}");
    assert!(drills.iter().all(|drill| drill["rpo_writes_lost"] == 0), "{kept}");
    browser.wait("nothing runs any more", SHOWN, &format!("{now} === 'No drill runs.'"));
    browser.value("document.querySelector('details').open = true");
    let told = "document.querySelector('details').textContent.includes('kill node 1')";
    browser.wait("each is told", SHOWN, told);
    browser.screenshot(&pictures().join("drills-over.png"));

    // Of the node that will be frozen the page would hear nothing.
    let other = cluster.local.dir.entry(2).unwrap().http.clone();
    browser.open(&format!("http://{other}/#drills"));
    browser.wait("what was kept is seen there, too", SHOWN, &format!("{rounds} === 1"));
    ask(&["Kill each node", "Slow each node down"], "600");
    browser.wait("a node is frozen", REBUILT, &format!("{now}?.startsWith('freeze node 1')"));
    let dir = cluster.dir.display().to_string();
    let second = cluster.gabion(&["drill", "run", "--dir", &dir]);
    assert_eq!(second.code(), 5, "{}", second.err);
    assert!(second.err.contains("already"), "{}", second.err);
    browser.tab_to("Stop the drills");
    browser.press(&ENTER.to_string());
    browser.wait("it asks", SHOWN, "document.querySelector('dialog[open]') !== null");
    browser.tab_to("Stop");
    browser.press(&ENTER.to_string());
    browser.wait("it is over", REBUILT, &format!("{now} === 'No drill runs.'"));
    assert_eq!(browser.value(rounds), 1, "what was stopped is not kept");
    let volumes = cluster.json(&["volume", "list"]);
    assert_eq!(volumes["volumes"].as_array().unwrap().len(), 0, "{volumes}");
}

const TOKEN: &str = "0123456789abcdef-full";
const READ_TOKEN: &str = "0123456789abcdef-read";

// rule: http/no-foreign-page, http/token
#[test]
fn only_who_may_changes_something() {
    if !needs(&["chromium", "chromedriver"]) {
        return;
    }
    let mut cluster = Cluster::laid_out(Shape::default());
    let config = cluster.local.dir.config(1);
    let mut text = fs::read_to_string(&config).unwrap();
    text.push_str(&format!("\n[http]\ntoken = \"{TOKEN}\"\nread_token = \"{READ_TOKEN}\"\n"));
    fs::write(&config, text).unwrap();
    cluster.start_all();
    cluster.create("vm1", 64);
    let locked = address(&cluster);
    let open = cluster.local.dir.entry(2).unwrap().http.clone();
    let body = r#"{"name":"x","size_bytes":4194304}"#;
    let make = |at: &str, headers: &[(&str, &str)]| {
        http::ask(at, "POST", "/api/v1/volumes", headers, body).0
    };
    let change = ("gabion-change", "1");
    let bearer = |token: &str| format!("Bearer {token}");
    let (full, read) = (bearer(TOKEN), bearer(READ_TOKEN));
    assert_eq!(make(&locked, &[change]), 401);
    assert_eq!(make(&locked, &[change, ("authorization", &read)]), 403);
    assert_eq!(make(&open, &[]), 403, "without the header that a form cannot send");
    assert_eq!(make(&open, &[change, ("origin", "http://evil.example")]), 403);
    assert_eq!(make(&open, &[change, ("host", "evil.example")]), 403, "a name that leads here");
    for path in ["status", "volumes", "events", "settings", "live", "segments", "history", "drills"]
    {
        let path = format!("/api/v1/{path}");
        assert_eq!(http::ask(&locked, "GET", &path, &[], "").0, 401, "{path}");
        assert_eq!(
            http::ask(&open, "GET", &path, &[("host", "evil.example")], "").0,
            403,
            "{path}"
        );
    }
    assert_eq!(cluster.json(&["volume", "list"])["volumes"].as_array().unwrap().len(), 1);
    assert_eq!(http::ask(&locked, "GET", "/api/v1/status", &[("authorization", &read)], "").0, 200);
    assert_eq!(make(&locked, &[change, ("authorization", &full)]), 200);
    assert_eq!(make(&open, &[change]), 409, "it is there already");

    let browser = Browser::start();
    browser.open(&format!("http://{locked}/#volumes"));
    browser.wait("the login", SHOWN, "document.querySelector('input[type=password]') !== null");
    browser.press("a wrong token, long enough");
    browser.press(&ENTER.to_string());
    browser.wait("it is refused", SHOWN, "document.querySelector('.wrong').textContent !== ''");
    browser.press(READ_TOKEN);
    browser.press(&ENTER.to_string());
    browser.wait("the volumes", SHOWN, &has_row("vm1"));
    let buttons = browser
        .text("[...document.querySelectorAll('main button')].map((b) => b.textContent).join()");
    assert_eq!(buttons, "Explain,Explain", "who may read only is offered nothing else");
}
