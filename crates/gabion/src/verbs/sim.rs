//! `gabion sim`: the simulator for users. What a seed decides is run, told, and made small when a
//! promise breaks.

use crate::bar::Progress;
use crate::failure::{Exit, Failure};
use crate::sim_args::{Seeds, SimRunArgs, SimVerb};
use crate::span;
use crate::verbs::{scale, show};
use gabion_api::view;
use gabion_sim::cluster::{self, Part, Scenario, Swarm};
use gabion_sim::many::{Batch, Sums, World};
use gabion_sim::oracle::Broken;
use gabion_sim::shrink::{Budget, Shrunk, shrink};
use gabion_sim::{Options, Report, caught, list};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{BufWriter, Write};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Without a choice of seeds these are run.
const SEEDS: Seeds = Seeds { first: 0, end: Some(100) };
/// What may be spent on making a failing seed small.
const SHRINK_RUNS_MAX: u32 = 300;
const SHRINK_MOST: Duration = Duration::from_secs(120);
/// Failures that are told one by one.
const FAILURES_SHOWN: usize = 20;
/// The end of the story of a failing seed.
const STORY_LINES: usize = 40;

pub fn run(verb: &SimVerb, as_json: bool) -> Result<(), Failure> {
    match verb {
        SimVerb::List => {
            show(as_json, &listed_json(), listed);
            Ok(())
        }
        SimVerb::Scale(args) => scale::run(args, as_json),
        SimVerb::Run(args) => {
            caught::silence();
            match (args.nodes, args.seed) {
                (Some(nodes), _) => directed(args, nodes, as_json),
                (None, Some(seed)) => one(args, seed, as_json),
                (None, None) => many(args, as_json),
            }
        }
    }
}

fn listed_json() -> Value {
    let shown = |items: &[list::Listed]| -> Vec<Value> {
        items.iter().map(|one| json!({ "name": one.name, "text": one.text })).collect()
    };
    json!({ "faults": shown(&list::faults()), "promises": shown(list::PROMISES) })
}

fn listed() -> String {
    let table = |head: &str, items: &[list::Listed]| {
        let rows: Vec<_> =
            items.iter().map(|one| vec![one.name.to_owned(), one.text.to_owned()]).collect();
        view::table(&[head, "WHAT IT IS"], &rows)
    };
    let faults = table("FAULT", &list::faults());
    format!("{faults}\n\n{}", table("PROMISE", list::PROMISES))
}

fn world(args: &SimRunArgs) -> World {
    if args.store { World::Store } else { World::Cluster }
}

/// What to type to see it again.
fn replay(args: &SimRunArgs, seed: u64, part: &Part) -> String {
    let store = if args.store { " --store" } else { "" };
    format!("gabion sim run --seed {seed}{store}{}", part.options())
}

fn one(args: &SimRunArgs, seed: u64, as_json: bool) -> Result<(), Failure> {
    let part = Part {
        troubles: args.only.as_ref().map(|only| only.0.clone()),
        guests: args.guests.as_ref().map(|guests| guests.0.clone()),
        actions: args.actions,
    };
    let lacks = cluster::plan(seed).lacks(&part);
    if !lacks.is_empty() {
        let what = format!("seed {seed} has no {}", lacks.join(", no "));
        return Err(Failure::new(Exit::Usage, what, "numbers are those of its schedule, from 0"));
    }
    let report = world(args).run(Options { seed, watch: args.trace }, &part);
    if !as_json {
        tell(args, &report, &part);
    }
    let shrunk = report
        .broken
        .as_ref()
        .filter(|_| part == Part::default())
        .map(|broken| made_small(args, seed, broken));
    let part = shrunk.as_ref().map_or(&part, |shrunk| &shrunk.part);
    let failed = report.broken.as_ref().map(|broken| failure(args, seed, broken, part));
    let text = || {
        let line = result_line(&report);
        failed.as_ref().map_or(line.clone(), |failed| format!("{line}\n\n{}", failed.text()))
    };
    let failed_json = failed.as_ref().map(Failed::json);
    show(as_json, &report_json(&report, &failed_json), text);
    end(usize::from(failed.is_some()), 1)
}

/// The trace, or the story.
fn tell(args: &SimRunArgs, report: &Report, part: &Part) {
    if args.trace {
        let of = args.of.as_deref();
        let lines = report.lines.iter();
        let wanted = lines.filter(|line| of.is_none_or(|of| line.who.to_string() == of));
        print_lines(wanted);
    }
    if args.story || args.nodes.is_some() && !args.trace {
        print_lines(report.story.iter().map(ToString::to_string).chain([String::new()]));
    }
    if !args.store && args.nodes.is_none() {
        let mut swarm = cluster::plan(report.seed);
        swarm.keep(part);
        println!("seed {}: {}", report.seed, swarm.summary());
    }
}

/// Many lines at once; a reader who has seen enough may go.
fn print_lines(lines: impl Iterator<Item = impl std::fmt::Display>) {
    let mut out = BufWriter::new(std::io::stdout().lock());
    for line in lines {
        if writeln!(out, "{line}").is_err() {
            return;
        }
    }
    let _ = out.flush();
}

fn result_line(report: &Report) -> String {
    let how = if report.broken.is_some() { "BROKEN" } else { "every promise held" };
    format!(
        "{how}: {:.1} virtual seconds, {} events, {} operations checked, trace {:016x}",
        report.virtual_time.as_secs_f64(),
        report.events,
        report.operations,
        report.hash,
    )
}

fn report_json(report: &Report, failed: &Option<Value>) -> Value {
    json!({
        "seed": report.seed.to_string(),
        "trace_hash": format!("{:016x}", report.hash),
        "virtual_ms": millis(report.virtual_time),
        "events": report.events,
        "operations": report.operations,
        "counts": report.counts,
        "failure": failed,
    })
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// A seed that broke a promise, as people and scripts are told of it.
struct Failed {
    seed: u64,
    broken: Broken,
    /// What still breaks it, and the schedule of that.
    schedule: Vec<String>,
    story: Vec<String>,
    replay: String,
}

impl Failed {
    fn text(&self) -> String {
        let Self { seed, broken, schedule, story, replay } = self;
        let mut text = format!("seed {seed} breaks {}: {}\n", broken.promise, broken.text);
        if !schedule.is_empty() {
            text.push_str(&format!("what goes wrong in it:\n  {}\n", schedule.join("\n  ")));
        }
        if !story.is_empty() {
            text.push_str(&format!("how it ends:\n  {}\n", story.join("\n  ")));
        }
        text + &format!("replay it: {replay} --trace")
    }

    fn json(&self) -> Value {
        json!({
            "seed": self.seed.to_string(),
            "promise": self.broken.promise,
            "text": self.broken.text,
            "schedule": self.schedule,
            "replay": self.replay,
        })
    }
}

fn failure(args: &SimRunArgs, seed: u64, broken: &Broken, part: &Part) -> Failed {
    let (mut schedule, mut story) = (Vec::new(), Vec::new());
    if !args.store {
        let mut swarm = cluster::plan(seed);
        swarm.keep(part);
        schedule = schedule_lines(&swarm);
        let report = cluster::run_part(Options { seed, watch: false }, part);
        let skip = report.story.len().saturating_sub(STORY_LINES);
        story = report.story.iter().skip(skip).map(ToString::to_string).collect();
    }
    let replay = replay(args, seed, part);
    Failed { seed, broken: broken.clone(), schedule, story, replay }
}

/// Each fault that is left, with its number.
fn schedule_lines(swarm: &Swarm) -> Vec<String> {
    let strikes = swarm.kept_strikes().map(|(number, strike)| format!("{number:>3} {strike}"));
    let late = swarm.troubles().into_iter().filter(|one| !one.is_strike());
    let mut lines: Vec<_> =
        strikes.chain(late.map(|one| format!("    at the end: {one}"))).collect();
    if lines.is_empty() {
        lines.push("nothing".to_string());
    }
    if let Some(guests) = &swarm.part.guests {
        let guests: Vec<_> = guests.iter().map(|guest| format!("guest{guest}")).collect();
        lines.push(format!("guests: {}", guests.join(", ")));
    }
    lines
}

fn made_small(args: &SimRunArgs, seed: u64, broken: &Broken) -> Shrunk {
    eprintln!("seed {seed} breaks {}: looking for the least that breaks it", broken.promise);
    let budget = Budget { runs_max: SHRINK_RUNS_MAX, until: Instant::now() + SHRINK_MOST };
    let shrunk = shrink(world(args), seed, broken, budget);
    let how = if shrunk.cut_short { "stopped after" } else { "done with" };
    eprintln!("{how} {} runs", shrunk.runs);
    shrunk
}

fn many(args: &SimRunArgs, as_json: bool) -> Result<(), Failure> {
    let time = args.time.map(|span| span.0);
    let seeds = args.seeds.unwrap_or_else(|| if time.is_some() { new_seeds() } else { SEEDS });
    if seeds.end.is_none() && time.is_none() {
        let what = format!("seeds {}.. have no end", seeds.first);
        return Err(Failure::new(Exit::Usage, what, "say --seeds A..B, or --time 10m"));
    }
    let began = Instant::now();
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let threads = args.threads.and_then(|threads| usize::try_from(threads).ok());
    let batch = Batch {
        world: world(args),
        first: seeds.first,
        end: seeds.end,
        until: time.map(|time| began + time),
        threads: threads.unwrap_or(cores),
    };
    let mut progress = Progress::new(match (seeds.end, time) {
        (Some(end), _) => end - seeds.first,
        (None, time) => time.map_or(0, millis),
    });
    let mut told = BTreeSet::new();
    let sums = batch.run(|sums| {
        for (seed, broken) in sums.failures.iter().filter(|(seed, _)| told.insert(**seed)) {
            progress.say(&format!("seed {seed} breaks {}: {}", broken.promise, broken.text));
        }
        let done = if seeds.end.is_some() { sums.seeds } else { millis(began.elapsed()) };
        progress.set(done, &counted(sums, began.elapsed()));
        true
    });
    progress.done();
    let took = began.elapsed();
    let smallest = sums
        .failures
        .first_key_value()
        .map(|(seed, broken)| failure(args, *seed, broken, &made_small(args, *seed, broken).part));
    let text = || {
        let mut text = format!("from seed {}: {}", seeds.first, summary(&sums, took));
        for (seed, broken) in sums.failures.iter().take(FAILURES_SHOWN) {
            text.push_str(&format!("\nseed {seed} breaks {}", broken.promise));
        }
        smallest.as_ref().map_or(text.clone(), |failed| format!("{text}\n\n{}", failed.text()))
    };
    show(as_json, &sums_json(args, &sums, (seeds.first, took), smallest.as_ref()), text);
    end(sums.failures.len(), sums.seeds)
}

/// Others each time.
fn new_seeds() -> Seeds {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Seeds { first: since.as_secs() * 1_000_000, end: None }
}

fn counted(sums: &Sums, took: Duration) -> String {
    format!(
        "{} seeds, {} operations checked ({:.0} a second), {} failures",
        sums.seeds,
        sums.operations,
        sums.operations as f64 / took.as_secs_f64().max(0.001),
        sums.failures.len(),
    )
}

fn summary(sums: &Sums, took: Duration) -> String {
    let faults = sums.faults();
    let listed: Vec<_> = faults.iter().map(|(what, count)| format!("{what} {count}")).collect();
    format!(
        "{}\n{:.2} virtual hours in {}, {} events\n{} faults injected: {}",
        counted(sums, took),
        sums.virtual_time.as_secs_f64() / 3600.0,
        span::shown(took),
        sums.events,
        faults.values().sum::<u64>(),
        if listed.is_empty() { "none".to_string() } else { listed.join(", ") },
    )
}

fn sums_json(
    args: &SimRunArgs,
    sums: &Sums,
    (first, took): (u64, Duration),
    smallest: Option<&Failed>,
) -> Value {
    let failures = sums.failures.iter().map(|(seed, broken)| match smallest {
        Some(failed) if failed.seed == *seed => failed.json(),
        Some(_) | None => json!({
            "seed": seed.to_string(),
            "promise": broken.promise,
            "text": broken.text,
            "replay": replay(args, *seed, &Part::default()),
        }),
    });
    json!({
        "first_seed": first.to_string(),
        "seeds": sums.seeds,
        "hash": format!("{:016x}", sums.hash),
        "took_ms": millis(took),
        "virtual_ms": millis(sums.virtual_time),
        "events": sums.events,
        "operations": sums.operations,
        "operations_per_s": (sums.operations as f64 / took.as_secs_f64().max(0.001)).round(),
        "faults": sums.faults(),
        "counts": sums.counts,
        "failures": failures.collect::<Vec<_>>(),
    })
}

fn end(failures: usize, seeds: u64) -> Result<(), Failure> {
    match failures {
        0 => Ok(()),
        failures => {
            let what = format!("{failures} of {seeds} seeds broke a promise");
            Err(Failure::failed(what, "replay it with the command above"))
        }
    }
}

fn directed(args: &SimRunArgs, nodes: usize, as_json: bool) -> Result<(), Failure> {
    let seed = args.seed.unwrap_or(1);
    let scenario = Scenario {
        nodes,
        witness: args.witness,
        rf: args.rf,
        kill: args.kill,
        cuts: args.cut.iter().map(|cut| (cut.0, cut.1)).collect(),
        down: args.down.0,
        apart: args.apart.0,
    };
    let swarm =
        scenario.swarm(seed).map_err(|error| Failure::new(Exit::Usage, error.to_string(), ""))?;
    let prng = gabion_types::Prng::new(seed);
    let report = cluster::run_swarm(Options { seed, watch: args.trace }, swarm, prng);
    if !as_json {
        tell(args, &report, &Part::default());
    }
    let replay = directed_replay(args, nodes, seed);
    show(as_json, &directed_json(&report), || directed_text(&report, &replay));
    end(usize::from(report.broken.is_some()), 1)
}

/// What to type to see the same scenario again.
fn directed_replay(args: &SimRunArgs, nodes: usize, seed: u64) -> String {
    let SimRunArgs { kill, rf, down, apart, .. } = args;
    let mut typed = format!("gabion sim run --seed {seed} --nodes {nodes} --rf {rf} --kill {kill}");
    for cut in &args.cut {
        typed.push_str(&format!(" --cut {},{}", cluster::named(cut.0), cluster::named(cut.1)));
    }
    if args.witness {
        typed.push_str(" --witness");
    }
    format!("{typed} --down {}ms --apart {}ms", down.0.as_millis(), apart.0.as_millis())
}

fn directed_text(report: &Report, replay: &str) -> String {
    let at = |at: gabion_types::Instant| format!("{:.1} s", at.nanos() as f64 / 1e9);
    let rows: Vec<_> = report
        .waits
        .iter()
        .map(|wait| {
            let from = at(wait.from);
            vec![format!("guest{}", wait.guest), wait.volume.clone(), span::shown(wait.took), from]
        })
        .collect();
    let table = view::table(&["GUEST", "VOLUME", "LONGEST WAIT", "FROM"], &rows);
    let whole = match (report.mended_at, report.whole_at) {
        (Some(mended), Some(whole)) => format!(
            "the last fault was over at {}; every copy is there since {}",
            at(mended),
            at(whole)
        ),
        (None, Some(_)) => "nothing went wrong".to_string(),
        (_, None) => "the cluster did not get whole again".to_string(),
    };
    let lost = match &report.broken {
        None => format!(
            "nothing was lost: {} operations were checked, and every block was read at the end",
            report.operations
        ),
        Some(broken) => {
            format!("BROKEN {}: {}\nreplay it: {replay} --trace", broken.promise, broken.text)
        }
    };
    format!("{table}\n\n{whole}\n{lost}")
}

fn directed_json(report: &Report) -> Value {
    let wait = |wait: &cluster::Wait| {
        json!({
            "guest": wait.guest.to_string(),
            "volume": wait.volume,
            "from_ms": wait.from.nanos() / 1_000_000,
            "longest_wait_ms": millis(wait.took),
        })
    };
    let line = |told: &cluster::Told| {
        let text = told.to_string();
        json!({ "at_ms": told.at.nanos() / 1_000_000, "who": told.who.to_string(), "text": text })
    };
    let at = |at: gabion_types::Instant| at.nanos() / 1_000_000;
    json!({
        "seed": report.seed.to_string(),
        "operations": report.operations,
        "virtual_ms": millis(report.virtual_time),
        "waits": report.waits.iter().map(wait).collect::<Vec<_>>(),
        "mended_at_ms": report.mended_at.map(at),
        "whole_at_ms": report.whole_at.map(at),
        "broken": report.broken.as_ref().map(ToString::to_string),
        "story": report.story.iter().map(line).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser;
    use gabion_sim::cluster::Trouble;

    fn typed(line: &str) -> SimRunArgs {
        #[derive(Parser)]
        struct Typed {
            #[command(flatten)]
            args: SimRunArgs,
        }
        Typed::try_parse_from(line.split(' ')).expect("it is typed as it is printed").args
    }

    /// What is printed runs: the program takes it.
    fn is_taken(replay: &str) {
        let line = format!("{replay} --trace");
        Cli::try_parse_from(line.split(' ')).unwrap_or_else(|error| panic!("{line}: {error}"));
    }

    #[test]
    fn a_failure_says_what_broke_what_goes_wrong_and_how_to_see_it_again() {
        let seed = (0..).find(|seed| cluster::plan(*seed).strikes.len() > 5).expect("many have");
        let broken = Broken { promise: "acked-survives", text: "block 3 is gone".to_string() };
        let troubles = Some([Trouble::Strike(1), Trouble::Strike(4)].into());
        let part = Part { troubles, guests: Some([0].into()), actions: None };
        let failed = failure(&typed("run"), seed, &broken, &part);
        assert_eq!(failed.schedule.len(), 3, "{:?}", failed.schedule);
        let text = failed.text();
        let replay = format!("gabion sim run --seed {seed} --only 1,4 --guests 0");
        for part in ["acked-survives: block 3 is gone", "guests: guest0", &replay] {
            assert!(text.contains(part), "{text}");
        }
        is_taken(&failed.replay);
        let part = Part { actions: Some(17), ..Part::default() };
        let failed = failure(&typed("run --store"), 3, &broken, &part);
        assert_eq!(failed.replay, "gabion sim run --seed 3 --store --actions 17");
        is_taken(&failed.replay);
    }

    #[test]
    fn a_scenario_is_typed_as_it_was() {
        let args = typed("run --nodes 5 --kill 2 --cut node1,node3 --witness --down 8s");
        let replay = directed_replay(&args, 5, 9);
        let wanted = "gabion sim run --seed 9 --nodes 5 --rf 2 --kill 2 --cut node1,node3 --witness \
                      --down 8000ms --apart 0ms";
        assert_eq!(replay, wanted);
        is_taken(&replay);
    }
}
