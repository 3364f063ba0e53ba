//! Frames over anything that carries octets: bounded, and never more memory than has arrived.

use std::io;

use bytes::{Buf, Bytes, BytesMut};
use mailtwin_logic::{
    limits::CHUNK_OCTETS,
    wire::frame::{HEADER_OCTETS, Header, HeaderError},
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

pub use mailtwin_logic::wire::frame::Kind;

/// Octets asked of the socket at once.
const READ_OCTETS: usize = 2 * CHUNK_OCTETS;
/// Octets gathered before they are written although nobody asked for a flush.
const WRITE_OCTETS: usize = 2 * CHUNK_OCTETS;

/// One frame.
#[derive(Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it holds.
    pub kind: Kind,
    /// Which stream.
    pub stream: u32,
    /// At most `limits::FRAME_OCTETS_MAX` octets.
    pub payload: Bytes,
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Frame({:?} {} ..{})", self.kind, self.stream, self.payload.len())
    }
}

/// Why there is no next frame, or why one was not written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection broke.
    #[error("the connection broke")]
    Io(#[from] io::Error),
    /// What came is no frame.
    #[error("what came is no frame")]
    Header(#[from] HeaderError),
    /// The peer closed in the middle of one.
    #[error("the connection ended inside a frame")]
    Truncated,
    /// A frame of our own is over the limit: a bug, found before the peer does.
    #[error("a frame of {0} octets was not sent: it is over the limit")]
    TooLong(usize),
}

/// Reads frames.
#[derive(Debug)]
pub struct FrameReader<R> {
    input: R,
    buffer: BytesMut,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    /// Over `input`.
    pub fn new(input: R) -> Self {
        Self { input, buffer: BytesMut::new() }
    }

    /// The next frame; `None` when the peer has closed between two. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        loop {
            if let Some(frame) = self.parse()? {
                return Ok(Some(frame));
            }
            self.buffer.reserve(READ_OCTETS);
            let read = match self.input.read_buf(&mut self.buffer).await {
                // TLS wants a farewell, which nothing here depends on: frames tell where they end.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => 0,
                read => read?,
            };
            if read == 0 {
                return if self.buffer.is_empty() { Ok(None) } else { Err(FrameError::Truncated) };
            }
        }
    }

    fn parse(&mut self) -> Result<Option<Frame>, FrameError> {
        let Some(header) = self.buffer.first_chunk::<HEADER_OCTETS>() else {
            return Ok(None);
        };
        let Header { octets, stream, kind } = Header::decode(*header)?;
        if self.buffer.len() - HEADER_OCTETS < octets {
            return Ok(None);
        }
        self.buffer.advance(HEADER_OCTETS);
        let payload = self.buffer.split_to(octets).freeze();
        Ok(Some(Frame { kind, stream, payload }))
    }
}

/// Writes frames; small ones are gathered.
#[derive(Debug)]
pub struct FrameWriter<W> {
    output: W,
    buffer: BytesMut,
}

impl<W: AsyncWrite + Unpin> FrameWriter<W> {
    /// Over `output`.
    pub fn new(output: W) -> Self {
        Self { output, buffer: BytesMut::new() }
    }

    /// What was written to.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn into_inner(self) -> W {
        self.output
    }

    /// Takes a frame; it is on its way after [`FrameWriter::flush`] at the latest.
    pub async fn send(&mut self, frame: &Frame) -> Result<(), FrameError> {
        let octets = frame.payload.len();
        let header = Header { octets, stream: frame.stream, kind: frame.kind };
        let header = header.encode().ok_or(FrameError::TooLong(octets))?;
        self.buffer.extend_from_slice(&header);
        if octets < CHUNK_OCTETS / 4 {
            self.buffer.extend_from_slice(&frame.payload);
            if self.buffer.len() < WRITE_OCTETS {
                return Ok(());
            }
            return self.write_buffer().await;
        }
        // Large payloads go out as they are.
        self.write_buffer().await?;
        Ok(self.output.write_all(&frame.payload).await?)
    }

    /// Takes a frame from a queue; sends everything taken so far if no other waits behind it.
    pub async fn send_from(&mut self, frame: &Frame, idle: bool) -> Result<(), FrameError> {
        self.send(frame).await?;
        if idle { self.flush().await } else { Ok(()) }
    }

    /// Sends everything taken so far.
    pub async fn flush(&mut self) -> Result<(), FrameError> {
        self.write_buffer().await?;
        Ok(self.output.flush().await?)
    }

    async fn write_buffer(&mut self) -> Result<(), FrameError> {
        self.output.write_all(&self.buffer).await?;
        self.buffer.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: Kind, stream: u32, octets: usize) -> Frame {
        Frame { kind, stream, payload: vec![7; octets].into() }
    }

    #[tokio::test]
    async fn frames_of_every_size_arrive_in_order() {
        let (near, far) = tokio::io::duplex(1000);
        let frames: Vec<Frame> = [0, 1, 20_000, 65_536, 3, 1 << 20]
            .into_iter()
            .zip(1..)
            .map(|(octets, stream)| frame(Kind::Octets, stream, octets))
            .collect();
        let outgoing = frames.clone();
        let send = async move {
            let mut writer = FrameWriter::new(near);
            for frame in &outgoing {
                writer.send(frame).await.unwrap();
            }
            writer.flush().await.unwrap();
        };
        let receive = async move {
            let mut reader = FrameReader::new(far);
            let mut got = Vec::new();
            while let Some(frame) = reader.next().await.unwrap() {
                got.push(frame);
            }
            got
        };
        let ((), got) = tokio::join!(send, receive);
        assert_eq!(got, frames);
    }

    #[tokio::test]
    async fn garbage_truncation_and_over_long_frames_are_errors() {
        let mut reader = FrameReader::new(&b"GET / HTTP/1.1\r\n\r\n"[..]);
        assert!(matches!(reader.next().await, Err(FrameError::Header(HeaderError::TooLong(_)))));
        let mut reader = FrameReader::new(&[5, 0, 0, 0, 1, 0, 0, 0, 0, 1][..]);
        assert!(matches!(reader.next().await, Err(FrameError::Truncated)));
        let mut writer = FrameWriter::new(Vec::new());
        let sent = writer.send(&frame(Kind::Message, 1, (1 << 20) + 1)).await;
        assert!(matches!(sent, Err(FrameError::TooLong(_))));
    }
}
