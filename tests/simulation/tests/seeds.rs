//! Random stories: `SEEDS` of them, beginning with `SEED`.

use mailtwin_simulation::story;

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn no_story_breaks_an_invariant() {
    let first = number("SEED").unwrap_or(1);
    let seeds = first..first + number("SEEDS").unwrap_or(2000);
    if let Err(failure) = story::run_all(seeds) {
        panic!("SEED={} SEEDS=1 repeats it: {failure}", failure.seed);
    }
}

#[test]
fn a_seed_repeats_its_story() {
    for seed in 1..=20 {
        let (once, again) = (story::run(seed), story::run(seed));
        assert_eq!(once.map_err(|f| f.history), again.map_err(|f| f.history), "seed {seed}");
    }
}
