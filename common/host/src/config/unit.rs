//! Durations and sizes as people write them: `7d`, `1m 30s`, `64MiB`.

use std::time::Duration;

/// Units of [`duration`], for messages.
pub(super) const DURATION_UNITS: &str = "ms, s, m, h, d, w";

/// Units of [`size`], for messages.
pub(super) const SIZE_UNITS: &str = "B, kB, KiB, MB, MiB, GB, GiB, TB, TiB";

/// Reads `"7d"`, `"1m 30s"`, `"10ms"`: whole numbers, each with its unit, added up.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let mut total = 0_u64;
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(format!("is empty; write a number with one of {DURATION_UNITS}"));
    }
    while !rest.is_empty() {
        let (number, unit, behind) = part(rest, text, DURATION_UNITS)?;
        let unit_ms: u64 = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            "w" => 604_800_000,
            _ => return Err(unknown(unit, text, DURATION_UNITS)),
        };
        let sum = number.checked_mul(unit_ms).and_then(|ms| total.checked_add(ms));
        total = sum.ok_or_else(|| format!("{text:?} is too long"))?;
        rest = behind.trim_start();
    }
    Ok(Duration::from_millis(total))
}

/// Reads `"64MiB"`, `"1 GiB"`, `"10MB"`: one whole number and its unit, in octets.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let (number, unit, behind) = part(text.trim(), text, SIZE_UNITS)?;
    let unit_octets: u64 = match unit {
        "B" => 1,
        "kB" | "KB" => 1_000,
        "KiB" => 1 << 10,
        "MB" => 1_000_000,
        "MiB" => 1 << 20,
        "GB" => 1_000_000_000,
        "GiB" => 1 << 30,
        "TB" => 1_000_000_000_000,
        "TiB" => 1 << 40,
        _ => return Err(unknown(unit, text, SIZE_UNITS)),
    };
    if !behind.trim().is_empty() {
        return Err(format!("{text:?} is more than one number with its unit"));
    }
    number.checked_mul(unit_octets).ok_or_else(|| format!("{text:?} is too large"))
}

/// One number, its unit (blanks between them are fine), and what follows.
fn part<'t>(rest: &'t str, whole: &str, units: &str) -> Result<(u64, &'t str, &'t str), String> {
    let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    let (digits, behind) = rest.split_at(end);
    if digits.is_empty() {
        return Err(format!("{whole:?} is not a whole number with one of {units}"));
    }
    let number = digits.parse().map_err(|_| format!("{whole:?} is too large"))?;
    let behind = behind.trim_start();
    let end = behind.find(|c: char| !c.is_alphabetic()).unwrap_or(behind.len());
    let (unit, behind) = behind.split_at(end);
    if unit.is_empty() {
        return Err(if behind.is_empty() {
            format!("{whole:?} has no unit; units are {units}")
        } else {
            format!("{whole:?} is not a whole number with one of {units}")
        });
    }
    Ok((number, unit, behind))
}

fn unknown(unit: &str, whole: &str, units: &str) -> String {
    format!("unknown unit {unit:?} in {whole:?}; units are {units}")
}

/// `1%` to `100%`.
pub(super) fn percent(text: &str) -> Result<u8, String> {
    let number = text.strip_suffix('%').and_then(|number| number.trim().parse::<u8>().ok());
    let wrong = || format!("{text:?} is no share; write it \"1%\" to \"100%\"");
    number.filter(|number| (1..=100).contains(number)).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let cases = [
            ("10ms", 10),
            ("0s", 0),
            ("90s", 90_000),
            ("1m 30s", 90_000),
            ("1m30s", 90_000),
            ("1 h", 3_600_000),
            ("7d", 604_800_000),
            ("1w", 604_800_000),
        ];
        for (text, ms) in cases {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for bad in ["", "7", "d", "-1d", "1.5h", "1y", "1m 30", "99999999999999999999s", "1d,2h"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn sizes() {
        let cases = [
            ("64MiB", 64 << 20),
            ("1 GiB", 1 << 30),
            ("10MB", 10_000_000),
            ("0B", 0),
            ("2kB", 2000),
        ];
        for (text, octets) in cases {
            assert_eq!(size(text), Ok(octets), "{text}");
        }
        for bad in ["", "64", "64M", "1.5GiB", "64MiB 1B", "-1B", "99999999TiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }
}
