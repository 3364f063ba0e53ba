//! Who gets through a handshake, and what is said of those who do not.

use std::collections::BTreeSet;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;

fn only(key: &NodeKey) -> Expected {
    Expected::OneOf(BTreeSet::from([key.public()]))
}

async fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    (listener, address)
}

/// Both ends of one attempt; the server greets with two octets if it lets the client in.
async fn attempt(
    client: (&NodeKey, Expected),
    server: (&NodeKey, Expected),
) -> (Result<(Stream, PublicKey), TlsError>, Result<PublicKey, TlsError>) {
    let (listener, address) = listener().await;
    let serve = async {
        let (socket, _) = listener.accept().await.unwrap();
        let (mut stream, key) = accept(socket, server.0, server.1).await?;
        stream.write_all(b"hi").await.unwrap();
        stream.shutdown().await.unwrap();
        Ok(key)
    };
    tokio::join!(connect(&address, client.0, client.1), serve)
}

#[tokio::test]
async fn both_learn_whom_they_talk_to() {
    let (a, b) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
    for (of_b, of_a) in [(only(&b), only(&a)), (Expected::Any, Expected::Any)] {
        let (client, server) = attempt((&a, of_b), (&b, of_a)).await;
        assert_eq!(server.unwrap(), a.public());
        let (mut stream, key) = client.unwrap();
        assert_eq!(key, b.public());
        let mut greeting = String::new();
        stream.read_to_string(&mut greeting).await.unwrap();
        assert_eq!(greeting, "hi");
        let (socket, tls) = stream.get_ref();
        assert!(socket.nodelay().unwrap());
        assert_eq!(tls.protocol_version(), Some(rustls::ProtocolVersion::TLSv1_3));
        let suite = tls.negotiated_cipher_suite().unwrap().suite();
        assert_eq!(suite, rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    }
}

#[tokio::test]
async fn a_server_with_another_key_is_refused_and_its_key_named() {
    let (a, b) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
    let (client, server) = attempt((&a, only(&a)), (&b, only(&a))).await;
    let error = client.unwrap_err();
    assert!(matches!(error, TlsError::WrongKey { shown, .. } if shown == b.public()), "{error}");
    assert!(error.to_string().contains(&b.public().fingerprint()), "{error}");
    assert!(matches!(server, Err(TlsError::Handshake { .. })));
}

#[tokio::test]
async fn a_client_with_another_key_is_refused_and_can_say_why() {
    let (a, b) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
    let (client, server) = attempt((&a, only(&b)), (&b, only(&b))).await;
    let refusal = server.unwrap_err();
    assert!(
        matches!(refusal, TlsError::WrongKey { shown, .. } if shown == a.public()),
        "{refusal}"
    );
    // The client's half of the handshake was done before the server looked at its key.
    let error = match client {
        Ok((mut stream, _)) => stream.read_u8().await.unwrap_err(),
        Err(TlsError::Handshake { source, .. }) => source,
        Err(other) => panic!("{other}"),
    };
    assert!(is_key_refusal(&error), "{error:?}");
}

/// The certificate of one node with the private key of another: what a thief has.
fn impostor(shown: &NodeKey, own: &NodeKey) -> Arc<rustls::sign::SingleCertAndKey> {
    let signer = ring::sign::any_supported_type(&own.private()).unwrap();
    let certified = rustls::sign::CertifiedKey::new(vec![shown.certificate()], signer);
    Arc::new(certified.into())
}

#[tokio::test]
async fn showing_a_key_is_not_owning_it() {
    let (a, b) = (NodeKey::generate().unwrap(), NodeKey::generate().unwrap());
    let thief = NodeKey::generate().unwrap();
    let pinned = |key| Arc::new(Pinned::new(only(key)));
    let name = ServerName::IpAddress(SocketAddr::from(([127, 0, 0, 1], 0)).ip().into());

    let mut stolen = client_config(Protocol::Mail, &thief, pinned(&b)).unwrap();
    stolen.client_auth_cert_resolver = impostor(&a, &thief);
    let honest = server_config(&b, pinned(&a)).unwrap();
    let (near, far) = tokio::io::duplex(1 << 16);
    let connect = TlsConnector::from(Arc::new(stolen)).connect(name.clone(), near);
    let (_, served) = tokio::join!(connect, TlsAcceptor::from(Arc::new(honest)).accept(far));
    assert!(served.unwrap_err().to_string().contains("BadSignature"));

    let honest = client_config(Protocol::Mail, &a, pinned(&b)).unwrap();
    let mut stolen = server_config(&thief, pinned(&a)).unwrap();
    stolen.cert_resolver = impostor(&b, &thief);
    let (near, far) = tokio::io::duplex(1 << 16);
    let connect = TlsConnector::from(Arc::new(honest)).connect(name, near);
    let (connected, _) = tokio::join!(connect, TlsAcceptor::from(Arc::new(stolen)).accept(far));
    assert!(connected.unwrap_err().to_string().contains("BadSignature"));
}

/// Sends `octets` to a server and returns what it says of them and what it answers.
async fn send_raw(octets: &[u8]) -> (TlsError, Vec<u8>) {
    let (listener, address) = listener().await;
    let serve = async {
        let key = NodeKey::generate().unwrap();
        let (socket, _) = listener.accept().await.unwrap();
        accept(socket, &key, Expected::Any).await.unwrap_err()
    };
    let client = async {
        let mut socket = TcpStream::connect(&address).await.unwrap();
        socket.write_all(octets).await.unwrap();
        let mut answer = Vec::new();
        // The server may close before it has read everything, which resets the connection.
        let _ = socket.read_to_end(&mut answer).await;
        answer
    };
    tokio::join!(serve, client)
}

#[tokio::test]
async fn garbage_is_refused() {
    for garbage in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0; 4096], &[0xff; 4096]] {
        let (error, _) = send_raw(garbage).await;
        assert!(matches!(error, TlsError::Handshake { .. }), "{error}");
    }
}

#[tokio::test]
async fn a_tls_1_2_client_is_refused_by_alert() {
    // A ClientHello without supported_versions: version 1.2, one cipher suite, x25519, Ed25519.
    let extensions: &[u8] =
        &[0, 10, 0, 4, 0, 2, 0, 29, 0, 13, 0, 6, 0, 4, 8, 7, 4, 3, 0, 11, 0, 2, 1, 0];
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.extend([0, 0, 2, 0xc0, 0x2b, 1, 0, 0, u8::try_from(extensions.len()).unwrap()]);
    body.extend(extensions);
    let length = u8::try_from(body.len()).unwrap();
    let mut hello = vec![22, 3, 1, 0, length + 4, 1, 0, 0, length];
    hello.extend(&body);
    let (error, answer) = send_raw(&hello).await;
    assert!(matches!(error, TlsError::Handshake { .. }), "{error}");
    // Record type alert, fatal, protocol_version.
    assert!(matches!(answer[..], [21, _, _, _, _, 2, 70]), "{answer:?} {error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_given_up() {
    let (listener, address) = listener().await;
    let key = NodeKey::generate().unwrap();
    let silent = TcpStream::connect(&address).await.unwrap();
    let (socket, _) = listener.accept().await.unwrap();
    let error = accept(socket, &key, Expected::Any).await.unwrap_err();
    assert!(matches!(error, TlsError::Silent { .. }), "{error}");
    drop(silent);
}

#[tokio::test]
async fn nobody_there_and_no_such_name_are_told_apart() {
    let (listener, address) = listener().await;
    drop(listener);
    let key = NodeKey::generate().unwrap();
    let error = connect(&address, &key, Expected::Any).await.unwrap_err();
    assert_eq!(error.to_string(), format!("connect to {address}"));
    let error = connect("no port", &key, Expected::Any).await.unwrap_err();
    assert_eq!(error.to_string(), "look up no port");
}
