//! How soon the simulator finds that a rule is switched off: `flaws (FLAW|all|none) N` runs seeds 0..N
//! of each flaw's own world and says which of them break which promise; `none`: without the flaw.

use gabion_sim::drill;
use gabion_types::{Flaw, Flaws};
use std::collections::BTreeMap;
use std::time::Instant;

fn main() {
    gabion_sim::caught::silence();
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let word = |at: usize| arguments.get(at).map_or("all", String::as_str);
    let seeds: u64 = word(1).parse().unwrap_or(20);
    for flaw in Flaw::ALL {
        match word(0) {
            "all" => measure(flaw, Flaws::only(flaw), seeds),
            "none" => measure(flaw, Flaws::NONE, seeds),
            name if name == format!("{flaw:?}") => measure(flaw, Flaws::only(flaw), seeds),
            _ => {}
        }
    }
}

fn measure(flaw: Flaw, flaws: Flaws, seeds: u64) {
    let began = Instant::now();
    let world = drill::world(flaw);
    let (mut first, mut caught, mut text) = (None, 0, String::new());
    let mut promises: BTreeMap<&'static str, u64> = BTreeMap::new();
    for seed in 0..seeds {
        let Some(broken) = drill::run(&world, seed, flaws).broken else { continue };
        caught += 1;
        *promises.entry(broken.promise).or_default() += 1;
        if first.is_none() {
            first = Some(seed);
            text = broken.text.chars().take(220).collect();
        }
    }
    let each = began.elapsed().as_secs_f64() / seeds as f64;
    let first = first.map_or("never".to_string(), |seed| format!("seed {seed}"));
    println!(
        "{flaw:?}: {caught} of {seeds}, first {first}, {promises:?}, {each:.2} s each: {text}"
    );
}
