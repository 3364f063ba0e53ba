//! Runs a fuzz target on its corpus and on mutations of it: what `cargo test` does, without any
//! tool that may be missing, and the same each time.
//!
//! Targets are functions of the crates whose parsers they try (`src/fuzz.rs` in each). Looking for
//! new inputs with coverage in hand is what `cargo xtask fuzz` does; what it finds goes to `corpus/`.
#![forbid(unsafe_code)]

use std::{
    env, fs,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    path::Path,
};

/// Mutations that are tried of each corpus; `MAILTWIN_FUZZ_RUNS` says otherwise.
const RUNS: u64 = 4000;

/// Longest mutation, in octets.
const OCTETS_MAX: usize = 8 << 10;

/// What parsers stumble over, put in here and there.
const WORDS: [&[u8]; 22] = [
    b"",
    b"\0",
    b"\n",
    b" ",
    b":",
    b"/",
    b"..",
    b"../",
    b":2,",
    b"%2F",
    b"\xff\xff\xff\xff",
    b"\xff\xff\xff\xff\x0f",
    b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01",
    b"4294967295",
    b"4294967296",
    b"18446744073709551615",
    b"-1",
    b"\xc3\xa4",
    b"\xed\xa0\x80",
    b"{\"",
    b"[[[[[[[[",
    b"&AOQ-",
];

/// Runs `target` on everything in `tests/fuzz/corpus/<name>`, then on mutations of that.
///
/// # Panics
/// If `target` does, after saying on which input.
pub fn replay(name: &str, target: impl Fn(&[u8])) {
    replay_some(name, RUNS, target);
}

/// As [`replay`], with `runs` mutations: for targets that take their time.
///
/// # Panics
/// If `target` does, after saying on which input.
pub fn replay_some(name: &str, runs: u64, target: impl Fn(&[u8])) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let corpus = read(&dir);
    for (file, input) in &corpus {
        try_one(&format!("{}/{file}", dir.display()), input, &target);
    }
    let (seed, runs) = (number("MAILTWIN_FUZZ_SEED", 1), number("MAILTWIN_FUZZ_RUNS", runs));
    for run in 0..runs {
        let mut random = Random::of(seed, run);
        let input = mutate(&corpus, &mut random);
        try_one(&format!("{name}: MAILTWIN_FUZZ_SEED={seed}, run {run}"), &input, &target);
    }
}

fn read(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let listed = fs::read_dir(dir).unwrap_or_else(|error| panic!("{}: {error}", dir.display()));
    let mut corpus: Vec<(String, Vec<u8>)> = listed
        .map(|entry| {
            let path = entry.expect("a directory that was opened can be listed").path();
            let content =
                fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            (path.file_name().unwrap_or_default().to_string_lossy().into_owned(), content)
        })
        .collect();
    assert!(!corpus.is_empty(), "{} is empty", dir.display());
    corpus.sort_unstable();
    corpus
}

fn try_one(what: &str, input: &[u8], target: &impl Fn(&[u8])) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(input))) {
        let told = panic.downcast_ref::<String>().cloned();
        let told = told.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        match told {
            Some(told) => panic!("{what}: {told}\ninput: b\"{}\"", input.escape_ascii()),
            None => resume_unwind(panic),
        }
    }
}

fn number(variable: &str, otherwise: u64) -> u64 {
    env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

/// One input of the corpus, changed in a few places.
fn mutate(corpus: &[(String, Vec<u8>)], random: &mut Random) -> Vec<u8> {
    let pick = |random: &mut Random| corpus[random.below(corpus.len())].1.as_slice();
    let mut input = pick(random).to_vec();
    for _ in 0..=random.below(6) {
        let at = random.below(input.len() + 1);
        let end = (at + 1 + random.below(16)).min(input.len());
        match random.below(8) {
            0 if at < end => input[at] ^= 1 << random.below(8),
            1 if at < end => input[at] = u8::try_from(random.below(256)).unwrap_or_default(),
            2 => drop(input.drain(at..end)),
            3 => input.truncate(at),
            4 => {
                let word = WORDS[random.below(WORDS.len())];
                input.splice(at..at, word.iter().copied());
            }
            5 => {
                let word = WORDS[random.below(WORDS.len())];
                let end = (at + word.len()).min(input.len());
                input.splice(at..end, word.iter().copied());
            }
            6 => {
                let part = input[at..end].repeat(1 + random.below(20));
                input.splice(at..at, part);
            }
            _ => {
                let other = pick(random);
                let (from, upto) = (random.below(other.len() + 1), random.below(other.len() + 1));
                let part = &other[from.min(upto)..from.max(upto)];
                input.splice(at..end, part.iter().copied());
            }
        }
    }
    input.truncate(OCTETS_MAX);
    input
}

/// `SplitMix64` (Steele, Lea and Flood 2014).
struct Random(u64);

impl Random {
    fn of(seed: u64, run: u64) -> Self {
        Self(seed.wrapping_mul(0xd134_2543_de82_ef95) ^ run.wrapping_mul(0x2545_f491_4f6c_dd1d))
    }

    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let mixed = usize::try_from((mixed ^ (mixed >> 31)) >> 1).unwrap_or(usize::MAX);
        mixed % limit.max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_that_fails_on_a_mutation_is_told_with_its_input() {
        let corpus = [("a".to_owned(), b"hello".to_vec())];
        let made = |run| mutate(&corpus, &mut Random::of(1, run));
        assert_eq!(made(7), made(7), "a seed repeats");
        let odd = (0..1000).map(made).find(|input| input.contains(&0xff)).expect("words get in");
        let failed = catch_unwind(|| {
            try_one("here", &odd, &|input: &[u8]| assert!(!input.contains(&0xff), "no 255"));
        });
        let told = *failed.unwrap_err().downcast::<String>().unwrap();
        assert!(told.contains("here: no 255") && told.contains("\\xff"), "{told}");
    }
}
