//! Both ends of word about a key: the next one of a node, or the one that it has given up.

use std::time::Duration;

use mailtwin_logic::{
    chain::Chain,
    limits::NODE_OCTETS_MAX,
    wire::{
        message::{decode, encode, told},
        notice::{KeyAnswer, KeyNotice, KeyWord},
    },
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    time::timeout,
};

use crate::{
    keys::PublicKey,
    net::{Frame, FrameError, FrameReader, FrameWriter, Kind},
    pins::{Admission, PinError, Pins},
    tls::is_key_refusal,
};

/// How long the other side may take to say its part.
const WITHIN: Duration = Duration::from_secs(10);

/// Why nothing came of it.
#[derive(Debug, thiserror::Error)]
pub enum NoticeError {
    /// The connection broke.
    #[error("speak of a key")]
    Net(#[source] FrameError),
    /// It does not know this node by the key that was shown.
    #[error("it knows this node by another key: run `replctl keys pin` there")]
    KeyRefused,
    /// It closed, was silent, or said something else.
    #[error("speak of a key: {0}")]
    Protocol(&'static str),
}

fn broken(error: FrameError) -> NoticeError {
    let refused = matches!(&error, FrameError::Io(source) if is_key_refusal(source));
    if refused { NoticeError::KeyRefused } else { NoticeError::Net(error) }
}

/// Says `notice` to a peer that is at the other end of `io`.
pub async fn tell<I: AsyncRead + AsyncWrite>(
    io: I,
    notice: &KeyNotice,
) -> Result<KeyAnswer, NoticeError> {
    let (input, output) = tokio::io::split(io);
    say(FrameWriter::new(output), notice).await?;
    let answer = hear(FrameReader::new(input)).await?;
    Ok(match answer {
        KeyAnswer::Refused(why) => KeyAnswer::Refused(told(&why)),
        KeyAnswer::Done | KeyAnswer::Configured => answer,
    })
}

/// Hears a notice of whoever has shown the key `shown`, and does what it says if that is a peer's.
pub async fn serve<I: AsyncRead + AsyncWrite>(
    io: I,
    shown: PublicKey,
    pins: &Pins,
) -> Result<(), NoticeError> {
    let (input, output) = tokio::io::split(io);
    let notice: KeyNotice = hear(FrameReader::new(input)).await?;
    if notice.node.len() > NODE_OCTETS_MAX || notice.node.chars().any(char::is_control) {
        return Err(NoticeError::Protocol("no node is called so"));
    }
    let answer = match take(&notice, shown, pins) {
        Ok(answer) => answer,
        Err(error) => KeyAnswer::Refused(Chain(&error).to_string()),
    };
    say(FrameWriter::new(output), &answer).await
}

fn take(notice: &KeyNotice, shown: PublicKey, pins: &Pins) -> Result<KeyAnswer, PinError> {
    let (peer, key) = (&notice.node, PublicKey::from_octets(notice.key));
    match pins.admit(peer, shown)? {
        Admission::Admitted => {}
        Admission::PinnedNow => {
            let fingerprint = shown.fingerprint();
            tracing::info!(peer, key = %shown, fingerprint, "first contact: key pinned; any other is refused from now on");
        }
        Admission::Refused(refusal) => return Err(refusal.into()),
    }
    let fingerprint = key.fingerprint();
    match notice.word {
        KeyWord::Next => {
            pins.pin(peer, key)?;
            tracing::info!(peer, %key, fingerprint, "it has told of its next key: pinned beside the present one");
            Ok(KeyAnswer::Done)
        }
        // The key in use is what all trust rests on.
        KeyWord::Gone if key == shown => Ok(KeyAnswer::Refused("it is the key in use".to_owned())),
        KeyWord::Gone => match pins.unpin(peer, key) {
            Ok(()) => {
                tracing::info!(peer, %key, fingerprint, "it has given up this key: unpinned");
                Ok(KeyAnswer::Done)
            }
            Err(PinError::NotPinned { .. }) => Ok(KeyAnswer::Done),
            Err(PinError::Configured { .. }) => Ok(KeyAnswer::Configured),
            Err(error) => Err(error),
        },
    }
}

async fn say<W: AsyncWrite + Unpin, T: serde::Serialize>(
    mut writer: FrameWriter<W>,
    what: &T,
) -> Result<(), NoticeError> {
    let frame = Frame { kind: Kind::Message, stream: 0, payload: encode(what).into() };
    let said = async {
        writer.send(&frame).await?;
        writer.flush().await
    };
    let said = timeout(WITHIN, said).await;
    said.map_err(|_| NoticeError::Protocol("nothing is taken"))?.map_err(broken)
}

async fn hear<R: AsyncRead + Unpin, T: serde::de::DeserializeOwned>(
    mut reader: FrameReader<R>,
) -> Result<T, NoticeError> {
    let frame = timeout(WITHIN, reader.next()).await;
    let frame = frame.map_err(|_| NoticeError::Protocol("no answer in time"))?.map_err(broken)?;
    let frame = frame.ok_or(NoticeError::Protocol("the connection was closed"))?;
    decode(&frame.payload).ok_or(NoticeError::Protocol("what came is something else"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::{config::Peer, keys::NodeKey, peers::Peers, pins::Expected};

    fn key() -> PublicKey {
        NodeKey::generate().unwrap().public()
    }

    async fn say_to(pins: &Pins, word: KeyWord, key: PublicKey, shown: PublicKey) -> KeyAnswer {
        let (here, there) = tokio::io::duplex(1 << 16);
        let notice = KeyNotice { node: "mx2".to_owned(), word, key: key.octets() };
        let (answer, served) = tokio::join!(tell(here, &notice), serve(there, shown, pins));
        served.unwrap();
        answer.unwrap()
    }

    #[tokio::test]
    async fn a_next_key_is_pinned_in_addition_and_the_old_one_goes_when_told() {
        let state = tempfile::tempdir().unwrap();
        let (old, next, written) = (key(), key(), key());
        let peer =
            Peer { name: "mx2".into(), address: "mx2:4710".into(), keys: vec![old, written] };
        let peers = Arc::new(Peers::open(state.path(), "mx1", &[peer]).unwrap());
        let pins = Pins::open(state.path(), key(), peers).unwrap();
        let expected = |keys: &[PublicKey]| Expected::OneOf(keys.iter().copied().collect());

        // A stranger says what it likes, and so does whoever has a key that was not shown.
        let refused = say_to(&pins, KeyWord::Next, next, key()).await;
        assert!(matches!(refused, KeyAnswer::Refused(_)), "{refused:?}");
        assert_eq!(pins.expected_of("mx2").unwrap(), expected(&[old, written]));

        assert_eq!(say_to(&pins, KeyWord::Next, next, old).await, KeyAnswer::Done);
        assert_eq!(say_to(&pins, KeyWord::Next, next, old).await, KeyAnswer::Done, "again");
        assert_eq!(pins.expected_of("mx2").unwrap(), expected(&[old, written, next]));
        let own = say_to(&pins, KeyWord::Gone, next, next).await;
        assert!(matches!(own, KeyAnswer::Refused(_)), "never the last: {own:?}");
        assert_eq!(say_to(&pins, KeyWord::Gone, old, next).await, KeyAnswer::Configured);
        assert_eq!(say_to(&pins, KeyWord::Gone, next, old).await, KeyAnswer::Done);
        assert_eq!(say_to(&pins, KeyWord::Gone, next, old).await, KeyAnswer::Done, "again");
        assert_eq!(pins.expected_of("mx2").unwrap(), expected(&[old, written]));
    }
}
