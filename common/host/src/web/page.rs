//! The status page: one document with its style and script in it, and the policy that lets a browser
//! run those two and nothing else.

use std::sync::LazyLock;

use ring::digest::{SHA256, digest};

const STYLE: &str = include_str!("page.css");
const SCRIPT: &str = include_str!("page.js");
const DOCUMENT: &str = include_str!("page.html");

/// The document.
pub(super) static HTML: LazyLock<String> =
    LazyLock::new(|| DOCUMENT.replace("@style@", STYLE).replace("@script@", SCRIPT));

/// Its `Content-Security-Policy`: nothing is loaded from anywhere, data come from here only, and of
/// inline style and script only what has these digests counts.
pub(super) static POLICY: LazyLock<String> = LazyLock::new(|| {
    let (style, script) = (source(STYLE), source(SCRIPT));
    format!(
        "default-src 'none'; style-src {style}; script-src {script}; connect-src 'self'; \
         img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
});

fn source(text: &str) -> String {
    format!("'sha256-{}'", base64(digest(&SHA256, text.as_bytes()).as_ref()))
}

fn base64(octets: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for group in octets.chunks(3) {
        let at = |place: usize| u32::from(group.get(place).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for place in 0..4 {
            let digit = (bits >> (18 - 6 * place) & 63) as usize;
            let is_there = place <= group.len();
            text.push(if is_there { char::from(DIGITS[digit]) } else { '=' });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_as_in_rfc_4648() {
        let cases =
            [("", ""), ("f", "Zg=="), ("fo", "Zm8="), ("foo", "Zm9v"), ("foobar", "Zm9vYmFy")];
        for (text, want) in cases {
            assert_eq!(base64(text.as_bytes()), want);
        }
    }

    #[test]
    fn the_document_is_whole_and_loads_nothing() {
        assert!(!HTML.contains("@style@") && !HTML.contains("@script@"));
        for word in ["http://", "https://", "innerHTML", "style=\"", "onclick", "eval("] {
            let found = HTML.matches(word).count();
            // The name of SVG's namespace looks like an address.
            assert_eq!(found, usize::from(word == "http://"), "{word}");
        }
        assert!(POLICY.starts_with("default-src 'none'; style-src 'sha256-"), "{}", *POLICY);
    }
}
