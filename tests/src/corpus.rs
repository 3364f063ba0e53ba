//! Messages to test with: the project's sample mail, each made unique by a serial number, and
//! octets that no well-behaved program writes.

use std::{fs, path::Path, sync::OnceLock};

use anyhow::Context as _;

use crate::random::Random;

/// Header field that carries a message's serial number.
pub const SERIAL: &str = "X-Serial";

/// Samples above this size are left out of random messages, so that runs stay quick.
const OCTETS_MAX: usize = 16 * 1024;

/// The sample mail that the project ships.
pub fn samples() -> anyhow::Result<&'static [Vec<u8>]> {
    static SAMPLES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    if let Some(samples) = SAMPLES.get() {
        return Ok(samples);
    }
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("../ops/replctl/sample");
    let mut samples = Vec::new();
    for entry in fs::read_dir(&dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "eml") {
            samples.push(fs::read(&path).with_context(|| format!("read {}", path.display()))?);
        }
    }
    anyhow::ensure!(!samples.is_empty(), "no sample mail in {}", dir.display());
    samples.sort();
    Ok(SAMPLES.get_or_init(|| samples))
}

/// A sample with a serial number of its own, as it would travel by SMTP or IMAP: lines end in CRLF.
pub fn message(random: &mut Random, serial: &str) -> anyhow::Result<Vec<u8>> {
    let samples: Vec<&Vec<u8>> =
        samples()?.iter().filter(|sample| sample.len() <= OCTETS_MAX).collect();
    let sample = random.pick(&samples).context("a sample is small enough")?;
    let mut message = format!("{SERIAL}: {serial}\r\n").into_bytes();
    for line in sample.split_inclusive(|&octet| octet == b'\n') {
        let bare = line.strip_suffix(b"\n").unwrap_or(line);
        let bare = bare.strip_suffix(b"\r").unwrap_or(bare);
        message.extend(bare.iter().filter(|&&octet| octet != 0));
        message.extend_from_slice(b"\r\n");
    }
    Ok(message)
}

/// A small message for tests that look at one thing.
pub fn short(subject: &str) -> Vec<u8> {
    format!(
        "{SERIAL}: {subject}\r\nFrom: a@example.org\r\nTo: b@example.org\r\nSubject: {subject}\r\n\
         Message-ID: <{subject}@example.org>\r\n\r\nThis is {subject}.\r\n"
    )
    .into_bytes()
}

/// The serial number of a message, if it has one.
pub fn serial(message: &[u8]) -> Option<String> {
    let head = message.get(..message.len().min(OCTETS_MAX)).unwrap_or_default();
    let head = String::from_utf8_lossy(head);
    // A delivery agent puts fields of its own above.
    let field = head.lines().take_while(|line| !line.is_empty());
    let mut values = field.filter_map(|line| line.strip_prefix(SERIAL)?.strip_prefix(": "));
    values.next().map(|value| value.trim_end().to_owned())
}

/// Octets that may lie in a Maildir although no mail program should have put them there.
pub fn nasty() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("empty", Vec::new()),
        ("one-octet", b"x".to_vec()),
        ("only-newline", b"\n".to_vec()),
        ("bare-cr", b"Subject: cr\rFrom: x\r\rbody\rmore\r".to_vec()),
        ("mixed-line-ends", b"Subject: mixed\r\nFrom: x\n\r\nbody\rmore\n\r\nend".to_vec()),
        ("nul", b"Subject: nul\n\nbefore\0after\n\0\n".to_vec()),
        ("eight-bit", b"Subject: \xff\xfe\x80\n\n\xc3\x28\xa0\xa1 \xf0\x28\x8c\xbc\n".to_vec()),
        ("no-final-newline", b"Subject: open end\n\nlast line".to_vec()),
        ("no-header-end", b"Subject: never ends".to_vec()),
        ("dots", b"Subject: dots\n\n.\n..\n.\r\n\r\n.".to_vec()),
        ("long-line", [b"Subject: long\n\n".to_vec(), vec![b'y'; 200_000]].concat()),
        ("all-octets", (0..=255).cycle().take(4096).collect()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_serial_survives() {
        let mut random = Random::new(1);
        for n in 0..50 {
            let message = message(&mut random, &format!("s{n}")).unwrap();
            assert_eq!(serial(&message), Some(format!("s{n}")));
            assert!(!message.contains(&0));
        }
        assert_eq!(serial(b"Subject: x\r\n\r\nX-Serial: no\r\n"), None);
    }
}
