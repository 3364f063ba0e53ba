//! The keys nodes know each other by: Ed25519, no authority, no names and no dates in them.
//!
//! Text form: `mt1` and the 32 octets of the public key as 64 lower-case hexadecimal digits.
//! Private form: PKCS#8 in PEM, mode 0600, `keys/node.pem` in the state directory.

use std::{
    fmt::{self, Write as _},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    str::FromStr,
};

use mailtwin_disk::{DiskError, dir, replace};
use rcgen::{CertificateParams, KeyPair, PKCS_ED25519, SigningKey as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::{Deserialize, Serialize};

/// What the text form begins with; another number would be another kind of key.
const PREFIX: &str = "mt1";

/// DER of an Ed25519 `SubjectPublicKeyInfo` up to the key itself (RFC 8410, section 4).
const SPKI_PREFIX: [u8; 12] = [0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0];

/// A node's public key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey([u8; 32]);

/// Text that is no public key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a key is \"{PREFIX}\" and 64 lower-case hexadecimal digits, as `replctl keys show` prints"
)]
pub struct ParseKeyError;

impl PublicKey {
    /// From a DER `SubjectPublicKeyInfo`; `None` unless it is Ed25519.
    pub fn from_spki(der: &[u8]) -> Option<Self> {
        let key = der.strip_prefix(&SPKI_PREFIX)?;
        key.try_into().ok().map(Self)
    }

    /// Its octets.
    pub fn octets(&self) -> [u8; 32] {
        self.0
    }

    /// A key of these octets.
    pub fn from_octets(octets: [u8; 32]) -> Self {
        Self(octets)
    }

    /// Whether `signature` is this key's over `message`.
    pub fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let key = ring::signature::UnparsedPublicKey::new(&ring::signature::ED25519, &self.0);
        key.verify(message, signature).is_ok()
    }

    /// Short form for two people on the telephone: the first 128 bits of the key's SHA-256, in
    /// groups of four digits.
    pub fn fingerprint(&self) -> String {
        let digest = ring::digest::digest(&ring::digest::SHA256, &self.0);
        let mut text = String::new();
        for (i, octet) in digest.as_ref().iter().take(16).enumerate() {
            let separator = if i > 0 && i % 2 == 0 { "-" } else { "" };
            // Writing to a string cannot fail.
            let _ = write!(text, "{separator}{octet:02x}");
        }
        text
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        self.0.iter().try_for_each(|octet| write!(f, "{octet:02x}"))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PublicKey {
    type Err = ParseKeyError;

    fn from_str(text: &str) -> Result<Self, ParseKeyError> {
        let digits = text.strip_prefix(PREFIX).ok_or(ParseKeyError)?.as_bytes();
        let mut key = [0; 32];
        if digits.len() != 2 * key.len() {
            return Err(ParseKeyError);
        }
        let value = |digit: u8| match digit {
            b'0'..=b'9' => Ok(digit - b'0'),
            b'a'..=b'f' => Ok(digit - b'a' + 10),
            _ => Err(ParseKeyError),
        };
        for (octet, pair) in key.iter_mut().zip(digits.chunks_exact(2)) {
            *octet = match pair {
                [high, low] => value(*high)? << 4 | value(*low)?,
                _ => return Err(ParseKeyError),
            };
        }
        Ok(Self(key))
    }
}

impl TryFrom<String> for PublicKey {
    type Error = ParseKeyError;

    fn try_from(text: String) -> Result<Self, ParseKeyError> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> Self {
        key.to_string()
    }
}

/// This node's own key, with the certificate that carries it through a handshake.
pub struct NodeKey {
    pair: KeyPair,
    certificate: CertificateDer<'static>,
    public: PublicKey,
}

/// Why there is no node key.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// There is none yet.
    #[error("{path} is not there: run `replctl init` first", path = path.display())]
    Missing {
        /// Where it should be.
        path: PathBuf,
    },
    /// There is one already, and it is never overwritten.
    #[error("{path} is there already", path = path.display())]
    Exists {
        /// Where.
        path: PathBuf,
    },
    /// Others could read it.
    #[error(
        "{path} has mode {mode:o}: others can read the private key; run `chmod 600 {path}`, and \
         make a new key if they may have",
        path = path.display()
    )]
    Mode {
        /// Where.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It is no Ed25519 key in PKCS#8 PEM, or a new one cannot be made.
    #[error("{op} the node key {path}", path = path.display())]
    Key {
        /// `read` or `make`.
        op: &'static str,
        /// Where.
        path: PathBuf,
        /// Cause.
        source: rcgen::Error,
    },
    /// The operating system refused.
    #[error(transparent)]
    Disk(#[from] DiskError),
}

impl NodeKey {
    /// Makes a key that stays in memory.
    pub fn generate() -> Result<Self, KeyError> {
        let make = |source| KeyError::Key { op: "make", path: PathBuf::new(), source };
        let pair = KeyPair::generate_for(&PKCS_ED25519).map_err(make)?;
        Self::new(pair).map_err(make)
    }

    /// Makes a key and saves it under `state_dir`; refuses if there is one.
    pub fn create(state_dir: &Path) -> Result<Self, KeyError> {
        let path = path_in(state_dir);
        if path.symlink_metadata().is_ok() {
            return Err(KeyError::Exists { path });
        }
        let key = Self::generate()?;
        if let Some(parent) = path.parent() {
            dir::create(parent, 0o700)?;
        }
        key.save(&path)?;
        Ok(key)
    }

    /// Makes it the whole content of `path`, durably.
    pub(crate) fn save(&self, path: &Path) -> Result<(), DiskError> {
        replace::replace(path, self.pair.serialize_pem().as_bytes(), replace::PRIVATE)
    }

    /// Reads the key under `state_dir`.
    pub fn load(state_dir: &Path) -> Result<Self, KeyError> {
        Self::read(&path_in(state_dir))
    }

    /// Reads the key at `path`.
    pub(crate) fn read(path: &Path) -> Result<Self, KeyError> {
        let text = std::fs::read_to_string(path).map_err(|source| {
            if source.kind() == io::ErrorKind::NotFound {
                return KeyError::Missing { path: path.to_owned() };
            }
            DiskError::during("read", path)(source).into()
        })?;
        let metadata = std::fs::metadata(path).map_err(DiskError::during("look at", path))?;
        let mode = metadata.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Mode { path: path.to_owned(), mode });
        }
        let read = |source| KeyError::Key { op: "read", path: path.to_owned(), source };
        let pair = KeyPair::from_pkcs8_pem_and_sign_algo(&text, &PKCS_ED25519).map_err(read)?;
        Self::new(pair).map_err(read)
    }

    fn new(pair: KeyPair) -> Result<Self, rcgen::Error> {
        // The certificate is only the key's wrapping: nobody looks at its name or dates.
        let params = CertificateParams::new(vec!["mailtwin".to_owned()])?;
        let certificate = params.self_signed(&pair)?.der().clone();
        let raw = pair.public_key_raw().try_into();
        let public = PublicKey(raw.map_err(|_| rcgen::Error::UnsupportedSignatureAlgorithm)?);
        Ok(Self { pair, certificate, public })
    }

    /// Signs `message`.
    pub fn sign(&self, message: &[u8]) -> Vec<u8> {
        let signed = self.pair.sign(message);
        signed.expect("an Ed25519 key in memory signs everything")
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        self.public
    }

    pub(crate) fn certificate(&self) -> CertificateDer<'static> {
        self.certificate.clone()
    }

    pub(crate) fn private(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.pair.serialize_der().into())
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({})", self.public)
    }
}

pub(crate) fn path_in(state_dir: &Path) -> PathBuf {
    state_dir.join("keys").join("node.pem")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn text_form_and_back() {
        let key = NodeKey::generate().unwrap().public();
        assert_eq!(key.to_string().parse(), Ok(key));
        assert_eq!(key.to_string().len(), 67);
        assert_eq!(key.fingerprint().len(), 39);
        let json = serde_json::to_string(&key).unwrap();
        assert_eq!(serde_json::from_str::<PublicKey>(&json).unwrap(), key);
        for bad in ["", "mt1", "mt1...", &format!("mt2{}", "0".repeat(64))] {
            assert_eq!(bad.parse::<PublicKey>(), Err(ParseKeyError), "{bad}");
        }
        let upper = format!("mt1{}", "A".repeat(64));
        assert!(upper.parse::<PublicKey>().is_err(), "one key has one form");
    }

    #[test]
    fn a_saved_key_comes_back_and_is_never_overwritten() {
        let state = tempfile::tempdir().unwrap();
        assert!(matches!(NodeKey::load(state.path()), Err(KeyError::Missing { .. })));
        let key = NodeKey::create(state.path()).unwrap();
        assert_eq!(NodeKey::load(state.path()).unwrap().public(), key.public());
        assert!(matches!(NodeKey::create(state.path()), Err(KeyError::Exists { .. })));
        assert!(!format!("{key:?}").contains("PRIVATE"));
    }

    #[test]
    fn a_key_that_others_can_read_or_that_is_damaged_is_refused() {
        let state = tempfile::tempdir().unwrap();
        NodeKey::create(state.path()).unwrap();
        let path = path_in(state.path());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(NodeKey::load(state.path()), Err(KeyError::Mode { mode: 0o640, .. })));
        replace::replace(&path, b"garbage", replace::PRIVATE).unwrap();
        assert!(matches!(NodeKey::load(state.path()), Err(KeyError::Key { .. })));
    }
}
