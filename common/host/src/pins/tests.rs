//! First contact, later contacts, and every way to be refused.

use super::*;
use crate::keys::NodeKey;

fn key() -> PublicKey {
    NodeKey::generate().unwrap().public()
}

fn peer(name: &str, keys: &[PublicKey]) -> Peer {
    Peer { name: name.into(), address: "127.0.0.1:1".into(), keys: keys.to_vec() }
}

fn open(state: &tempfile::TempDir, own: PublicKey, peers: &[Peer]) -> Pins {
    let peers = Peers::open(state.path(), "mx1", peers).unwrap();
    Pins::open(state.path(), own, Arc::new(peers)).unwrap()
}

#[test]
fn the_first_key_is_pinned_and_any_other_refused() {
    let state = tempfile::tempdir().unwrap();
    let peers = [peer("mx2", &[])];
    let pins = open(&state, key(), &peers);
    let (first, second) = (key(), key());
    assert_eq!(pins.expected_of("mx2").unwrap(), Expected::Any);
    assert_eq!(pins.expected_of_anyone().unwrap(), Expected::Any);
    assert_eq!(pins.admit("mx2", first).unwrap(), Admission::PinnedNow);
    assert_eq!(pins.admit("mx2", first).unwrap(), Admission::Admitted);

    // The other daemon of the node, and this one after a restart, know it too.
    let pins = open(&state, key(), &peers);
    assert_eq!(pins.admit("mx2", first).unwrap(), Admission::Admitted);
    let expected = BTreeSet::from([first]);
    assert_eq!(pins.expected_of_anyone().unwrap(), Expected::OneOf(expected.clone()));
    let refusal = Refusal::OtherKey { peer: "mx2".into(), shown: second, expected };
    assert!(refusal.to_string().contains(&format!("replctl keys pin mx2 {second}")), "{refusal}");
    assert_eq!(pins.admit("mx2", second).unwrap(), Admission::Refused(refusal));
}

#[test]
fn a_key_belongs_to_one_peer_and_never_to_us() {
    let state = tempfile::tempdir().unwrap();
    let (own, second, third) = (key(), key(), key());
    let peers = [peer("mx2", &[second]), peer("mx3", &[]), peer("mx4", &[])];
    let pins = open(&state, own, &peers);
    let refused = |name, key| {
        let admission = pins.admit(name, key).unwrap();
        let Admission::Refused(refusal) = admission else { panic!("{name}: {admission:?}") };
        refusal
    };
    assert!(
        matches!(refused("mx3", second), Refusal::KeyOfAnother { owner, .. } if owner == "mx2")
    );
    assert!(matches!(refused("mx3", own), Refusal::OwnKey(_)));
    assert!(matches!(refused("mx9", third), Refusal::UnknownPeer(_)));
    assert!(matches!(refused("mx2", third), Refusal::OtherKey { .. }));
    assert_eq!(pins.admit("mx3", third).unwrap(), Admission::PinnedNow);
    assert!(matches!(refused("mx4", third), Refusal::KeyOfAnother { owner, .. } if owner == "mx3"));
    assert!(matches!(pins.pin("mx4", third), Err(PinError::Refused(_))));
}

#[test]
fn pins_by_hand_rotate_a_key() {
    let state = tempfile::tempdir().unwrap();
    let (old, new) = (key(), key());
    let pins = open(&state, key(), &[peer("mx2", &[old])]);
    pins.pin("mx2", new).unwrap();
    pins.pin("mx2", new).unwrap();
    assert_eq!(pins.admit("mx2", new).unwrap(), Admission::Admitted);
    assert_eq!(pins.admit("mx2", old).unwrap(), Admission::Admitted);
    let sources: Vec<PinSource> = pins.list().unwrap().iter().map(|pin| pin.source).collect();
    assert_eq!(sources, [PinSource::Configuration, PinSource::Pinned]);
    assert!(matches!(pins.unpin("mx2", old), Err(PinError::Configured { .. })));
    pins.unpin("mx2", new).unwrap();
    assert!(matches!(pins.unpin("mx2", new), Err(PinError::NotPinned { .. })));
    assert!(matches!(pins.admit("mx2", new).unwrap(), Admission::Refused(_)));
}

#[test]
fn a_peer_has_a_bounded_number_of_keys() {
    let state = tempfile::tempdir().unwrap();
    let pins = open(&state, key(), &[peer("mx2", &[])]);
    for _ in 0..KEYS_MAX {
        pins.pin("mx2", key()).unwrap();
    }
    assert!(matches!(pins.pin("mx2", key()), Err(PinError::TooMany(_))));
}

#[test]
fn what_the_configuration_says_of_a_key_holds_against_an_older_pin() {
    let state = tempfile::tempdir().unwrap();
    let moved = key();
    let pins = open(&state, key(), &[peer("mx2", &[]), peer("mx3", &[])]);
    assert_eq!(pins.admit("mx2", moved).unwrap(), Admission::PinnedNow);
    pins.peers.reload(&[peer("mx2", &[]), peer("mx3", &[moved])]);
    assert_eq!(pins.admit("mx3", moved).unwrap(), Admission::Admitted);
    assert!(matches!(pins.admit("mx2", moved).unwrap(), Admission::Refused(_)));
    assert_eq!(pins.expected_of("mx2").unwrap(), Expected::Any);
}

#[test]
fn nobody_is_let_in_on_a_damaged_file() {
    let state = tempfile::tempdir().unwrap();
    let pins = open(&state, key(), &[peer("mx2", &[])]);
    for damage in ["", "{}", "{\"format_version\":1,\"pins\":{\"mx2\":[\"mt1\"]}}"] {
        replace::replace(&pins.path(), damage.as_bytes(), replace::PRIVATE).unwrap();
        assert!(matches!(pins.admit("mx2", key()), Err(PinError::Damaged { .. })), "{damage}");
    }
    let newer = b"{\"format_version\":2,\"pins\":{}}";
    replace::replace(&pins.path(), newer, replace::PRIVATE).unwrap();
    assert!(matches!(pins.admit("mx2", key()), Err(PinError::Version { found: 2, .. })));
}
