//! Answers that both daemons give in the same words.

use std::error::Error;

use mailtwin_logic::chain::Chain;

use super::{FailureCode, KeyList, Response};
use crate::{keys::PublicKey, pins::Pins};

/// It is done, or it is not and this is why.
pub fn done<E: Error + 'static>(result: Result<(), E>) -> Response {
    match result {
        Ok(()) => Response::Done,
        Err(error) => failed(FailureCode::Failed, Chain(&error).to_string()),
    }
}

/// It is not done.
pub fn failed(code: FailureCode, message: String) -> Response {
    Response::Failed { code, message }
}

/// This node's key and its peers'.
pub fn keys(node: &str, key: PublicKey, pins: &Pins) -> Response {
    match pins.list() {
        Ok(pins) => Response::Keys(KeyList {
            node: node.to_owned(),
            key,
            fingerprint: key.fingerprint(),
            pins,
        }),
        Err(error) => failed(FailureCode::Failed, Chain(&error).to_string()),
    }
}
