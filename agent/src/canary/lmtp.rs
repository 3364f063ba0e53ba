//! Hands one message to the mail server of this machine, as a mail transfer agent would: LMTP (RFC 2033).

use std::io;

use mailtwin_host::config::Place;
use tokio::{
    io::{
        AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _,
        BufReader,
    },
    net::{TcpStream, UnixStream},
};

/// Octets of one answer that are read.
const ANSWER_MAX: u64 = 8 << 10;

/// Why a message was not accepted. It may be there all the same.
#[derive(Debug, thiserror::Error)]
pub(super) enum LmtpError {
    #[error("talk LMTP to the mail server at {0}")]
    Io(Place, #[source] io::Error),
    #[error("the mail server at {0} answered {1} with {2:?}")]
    Refused(Place, &'static str, String),
}

/// Returns once the mail server has accepted `message`, whose lines end with CR LF, for `account`.
pub(super) async fn deliver(place: &Place, account: &str, message: &str) -> Result<(), LmtpError> {
    let failed = |error| LmtpError::Io(place.clone(), error);
    let told = match place {
        Place::Unix(path) => {
            talk(UnixStream::connect(path).await.map_err(failed)?, account, message).await
        }
        Place::Tcp(address) => {
            talk(TcpStream::connect(address).await.map_err(failed)?, account, message).await
        }
    };
    told.map_err(|error| match error {
        Talk::Io(error) => failed(error),
        Talk::Refused(to, said) => LmtpError::Refused(place.clone(), to, said),
    })
}

#[derive(Debug)]
enum Talk {
    Io(io::Error),
    Refused(&'static str, String),
}

impl From<io::Error> for Talk {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

async fn talk(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    account: &str,
    message: &str,
) -> Result<(), Talk> {
    let mut stream = BufReader::new(stream);
    expect(&mut stream, "the connection", '2').await?;
    let turns = [
        ("LHLO", "LHLO localhost\r\n".to_owned(), '2'),
        ("MAIL FROM", "MAIL FROM:<>\r\n".to_owned(), '2'),
        ("RCPT TO", format!("RCPT TO:<{account}>\r\n"), '2'),
        ("DATA", "DATA\r\n".to_owned(), '3'),
        // One recipient, so one answer (RFC 2033 section 4.2).
        ("the message", stuffed(message), '2'),
    ];
    for (what, line, class) in turns {
        stream.write_all(line.as_bytes()).await?;
        stream.flush().await?;
        expect(&mut stream, what, class).await?;
    }
    // It is accepted: how the talk ends is of no interest.
    let _ = stream.write_all(b"QUIT\r\n").await;
    Ok(())
}

/// A line that begins with a dot gets another one (RFC 5321 section 4.5.2).
fn stuffed(message: &str) -> String {
    let lines = message.split_inclusive("\r\n");
    let stuffed =
        lines.map(|line| if line.starts_with('.') { format!(".{line}") } else { line.to_owned() });
    stuffed.chain([".\r\n".to_owned()]).collect()
}

/// Reads one answer, which may have several lines.
async fn expect(
    stream: &mut BufReader<impl AsyncRead + Unpin>,
    what: &'static str,
    class: char,
) -> Result<(), Talk> {
    let (mut lines, mut said) = (stream.take(ANSWER_MAX), Vec::new());
    loop {
        said.clear();
        lines.read_until(b'\n', &mut said).await?;
        if !said.ends_with(b"\n") {
            return Err(Talk::Io(io::ErrorKind::UnexpectedEof.into()));
        }
        if said.get(3) != Some(&b'-') {
            break;
        }
    }
    let said = String::from_utf8_lossy(&said).trim_end().to_owned();
    if said.starts_with(class) { Ok(()) } else { Err(Talk::Refused(what, said)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A server that says `answers`, one to each of what it is told; returns what it was told.
    async fn told(answers: &str, message: &str) -> (Result<(), Talk>, String) {
        let (ours, theirs) = tokio::io::duplex(64 << 10);
        let mut theirs = BufReader::new(theirs);
        theirs.write_all(answers.as_bytes()).await.unwrap();
        let ended = talk(ours, "canary@example.org", message).await;
        let mut heard = String::new();
        theirs.get_mut().shutdown().await.unwrap();
        theirs.read_to_string(&mut heard).await.unwrap();
        (ended, heard)
    }

    const GOOD: &str =
        "220 hello\r\n250-here\r\n250 8BITMIME\r\n250 ok\r\n250 ok\r\n354 go\r\n250 saved\r\n";

    #[tokio::test]
    async fn a_message_is_handed_over() {
        let (ended, heard) = told(GOOD, "Subject: a\r\n\r\n.dot\r\n").await;
        ended.unwrap();
        assert_eq!(
            heard,
            "LHLO localhost\r\nMAIL FROM:<>\r\nRCPT TO:<canary@example.org>\r\nDATA\r\nSubject: a\r\n\r\n..dot\r\n.\r\nQUIT\r\n"
        );
    }

    #[tokio::test]
    async fn whoever_refuses_is_quoted() {
        let answers = "220 hello\r\n250 here\r\n250 ok\r\n550 5.1.1 no such user\r\n";
        let (ended, heard) = told(answers, "x\r\n").await;
        let Err(Talk::Refused(what, said)) = ended else { panic!("{ended:?}") };
        assert_eq!((what, said.as_str()), ("RCPT TO", "550 5.1.1 no such user"));
        assert!(!heard.contains("DATA"));
    }

    #[tokio::test]
    async fn an_answer_without_an_end_is_cut_off() {
        let answers = "220-x\r\n".repeat(2_000);
        let (ended, _) = told(&answers, "x\r\n").await;
        assert!(matches!(ended, Err(Talk::Io(_))), "{ended:?}");
    }
}
