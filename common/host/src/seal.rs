//! Reports that say who made them: two lines, the report and the signature over that line's octets.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::keys::{NodeKey, PublicKey};

/// What the signature also covers, so that it is good for nothing else.
const CONTEXT: &[u8] = b"mailtwin check report 1\n";

/// The second line.
#[derive(Debug, Serialize, Deserialize)]
struct Signature {
    key: PublicKey,
    signature: String,
}

/// Why a report cannot be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// It does not consist of a report and a signature.
    #[error("it is no signed report: a line of report and a line of signature")]
    Shape,
    /// It was changed after it was signed, or the signature is another report's.
    #[error("its signature does not fit: it was changed after it was signed")]
    Forged,
}

/// A signed report.
pub fn seal<T: Serialize>(report: &T, key: &NodeKey) -> Result<Vec<u8>, serde_json::Error> {
    let mut text = serde_json::to_vec(report)?;
    let signature = key.sign(&[CONTEXT, &text].concat());
    let mut digits = String::new();
    for octet in signature {
        // Writing to a string cannot fail.
        let _ = write!(digits, "{octet:02x}");
    }
    let signature = Signature { key: key.public(), signature: digits };
    text.push(b'\n');
    text.extend(serde_json::to_vec(&signature)?);
    text.push(b'\n');
    Ok(text)
}

/// What a signed report says, and whose key signed it. Whether that key is to be trusted is for the
/// caller to know.
pub fn unseal<T: DeserializeOwned>(text: &[u8]) -> Result<(T, PublicKey), SealError> {
    let mut lines = text.split(|&octet| octet == b'\n');
    let (Some(report), Some(signature)) = (lines.next(), lines.next()) else {
        return Err(SealError::Shape);
    };
    if lines.any(|line| !line.is_empty()) {
        return Err(SealError::Shape);
    }
    let signature: Signature = serde_json::from_slice(signature).map_err(|_| SealError::Shape)?;
    let octets = octets(&signature.signature).ok_or(SealError::Shape)?;
    if !signature.key.verifies(&[CONTEXT, report].concat(), &octets) {
        return Err(SealError::Forged);
    }
    let said = serde_json::from_slice(report).map_err(|_| SealError::Shape)?;
    Ok((said, signature.key))
}

fn octets(digits: &str) -> Option<Vec<u8>> {
    let pairs = digits.as_bytes().chunks(2);
    let octet = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    pairs.map(octet).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_changed_or_signed_by_another_is_refused() {
        let (key, other) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
        let sealed = seal(&vec!["equal"], &key).unwrap();
        assert_eq!(unseal::<Vec<String>>(&sealed), Ok((vec!["equal".to_owned()], key.public())));
        let text = String::from_utf8(sealed).unwrap();
        let unseal = |text: &str| unseal::<Vec<String>>(text.as_bytes()).map(drop);
        assert_eq!(unseal(&text.replace("equal", "EQUAL")), Err(SealError::Forged));
        let swapped = text.replace(&key.public().to_string(), &other.public().to_string());
        assert_eq!(unseal(&swapped), Err(SealError::Forged));
        assert_eq!(unseal(&format!("{text}more")), Err(SealError::Shape));
        for bad in ["", "{}", "{}\n{}\n", "\n\n"] {
            assert_eq!(unseal(bad), Err(SealError::Shape), "{bad:?}");
        }
    }
}
