//! How soon the simulator finds that a rule is switched off: `flaws (solo|cluster) (FLAW|all) N`
//! runs seeds 0..N with it and says which of them break which promise.

use gabion_sim::{Options, Report, cluster, solo};
use gabion_types::{Flaw, Flaws, Prng};
use std::collections::BTreeMap;
use std::time::Instant;

fn main() {
    gabion_sim::caught::silence();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let word = |at: usize| arguments.get(at).map_or("", String::as_str);
    let seeds: u64 = word(2).parse().unwrap_or(20);
    for flaw in Flaw::ALL {
        if word(1) == "all" || word(1) == format!("{flaw:?}") {
            measure(word(0), flaw, seeds);
        }
    }
}

fn measure(world: &str, flaw: Flaw, seeds: u64) {
    let began = Instant::now();
    let (mut first, mut caught, mut text) = (None, 0, String::new());
    let mut promises: BTreeMap<&'static str, u64> = BTreeMap::new();
    for seed in 0..seeds {
        let Some(broken) = run(world, seed, Flaws::only(flaw)).broken else { continue };
        caught += 1;
        *promises.entry(broken.promise).or_default() += 1;
        if first.is_none() {
            first = Some(seed);
            text = broken.text.chars().take(160).collect();
        }
    }
    let seconds = began.elapsed().as_secs_f64();
    let first = first.map_or("never".to_string(), |seed| format!("seed {seed}"));
    println!("{flaw:?}: {caught} of {seeds}, first {first}, {promises:?}, {seconds:.1} s: {text}");
}

fn run(world: &str, seed: u64, flaws: Flaws) -> Report {
    let options = Options { seed, watch: false };
    if world == "solo" {
        return solo::run_flawed(options, flaws);
    }
    let mut prng = Prng::new(seed);
    let swarm = cluster::Swarm::draw(&mut prng);
    cluster::run_flawed(options, swarm, prng, flaws)
}
