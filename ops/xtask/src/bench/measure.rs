//! Running a program under a stopwatch, and reading what the kernel counted for it.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Stdio},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use mailtwin_disk::clock::Clock;

/// What one run took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Cost {
    /// From start to end.
    pub wall: Duration,
    /// User and system time of the program and of every process it waited for, to 10 ms.
    pub cpu: Duration,
}

/// Runs a program to its end. Its talk goes to `log`; an exit code other than 0 is an error.
pub(super) fn run(clock: &Arc<dyn Clock>, command: &mut Command, log: &Path) -> Result<Cost> {
    let out = File::options()
        .create(true)
        .append(true)
        .open(log)
        .with_context(|| format!("open {}", log.display()))?;
    command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
    let (cpu, wall) = (children_cpu()?, clock.monotonic());
    let status = command.status().with_context(|| format!("start {command:?}"))?;
    let wall = clock.monotonic().saturating_sub(wall);
    ensure!(status.success(), "{command:?} ended with {status}; see {}", log.display());
    Ok(Cost { wall, cpu: children_cpu()?.saturating_sub(cpu) })
}

/// Measures work done in this process.
pub(super) fn time(clock: &Arc<dyn Clock>, work: impl FnOnce() -> Result<()>) -> Result<Cost> {
    let (cpu, wall) = (process_cpu("self")?, clock.monotonic());
    work()?;
    let wall = clock.monotonic().saturating_sub(wall);
    Ok(Cost { wall, cpu: process_cpu("self")?.saturating_sub(cpu) })
}

/// Processor time of a process since its start; `pid` may be `self`.
pub(super) fn process_cpu(pid: &str) -> Result<Duration> {
    // proc(5): fields 14 and 15 are user and system time in ticks of 10 ms.
    ticks(pid, 14)
}

/// Largest resident set a process ever had, in octets.
pub(super) fn peak_resident(pid: u32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let kib = text
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok())
        .with_context(|| format!("find VmHWM in {path}"))?;
    let kib: u64 = kib;
    Ok(kib * 1024)
}

fn children_cpu() -> Result<Duration> {
    // Fields 16 and 17 count the children that were waited for, and theirs.
    ticks("self", 16)
}

fn ticks(pid: &str, first_field: usize) -> Result<Duration> {
    let path = format!("/proc/{pid}/stat");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    // The second field is the program's name in parentheses, and may hold anything.
    let Some((_, rest)) = text.rsplit_once(')') else { bail!("parse {path}") };
    let fields: Vec<u64> = rest
        .split_whitespace()
        .skip(first_field - 3)
        .take(2)
        .map(str::parse)
        .collect::<Result<_, _>>()
        .with_context(|| format!("parse {path}"))?;
    Ok(Duration::from_millis(fields.iter().sum::<u64>() * 10))
}

/// The value in the middle; of two, the greater.
pub(super) fn median<T: PartialOrd + Copy>(values: &[T]) -> Option<T> {
    quantile(values, 50)
}

/// The smallest value that at least `percent` of all values do not exceed.
pub(super) fn quantile<T: PartialOrd + Copy>(values: &[T], percent: usize) -> Option<T> {
    let mut sorted = values.to_vec();
    sorted.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    let index = (sorted.len() * percent / 100).min(sorted.len().checked_sub(1)?);
    sorted.get(index).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_middle_and_the_tail() {
        assert_eq!(median::<u32>(&[]), None);
        assert_eq!(median(&[3, 1, 2]), Some(2));
        let hundred: Vec<u32> = (1..=100).collect();
        assert_eq!(quantile(&hundred, 99), Some(100));
        assert_eq!(quantile(&hundred, 50), Some(51));
    }

    #[test]
    fn the_kernel_counts_this_process() {
        assert!(process_cpu("self").is_ok());
        assert!(peak_resident(std::process::id()).unwrap() > 1 << 20);
    }
}
