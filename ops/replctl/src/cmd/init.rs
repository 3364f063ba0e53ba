//! `replctl init`: makes a node's state, once.

use anyhow::Context as _;
use mailtwin_host::{
    config::Config,
    keys::{KeyError, NodeKey, PublicKey},
    node::{Node, NodeError, Role},
};

use crate::{args, output::Output};

/// Runs the verb.
pub(crate) fn run(args: &args::Init, config: &Config, output: &Output) -> anyhow::Result<u8> {
    let role = match args.role {
        args::Role::Master => Role::Master,
        args::Role::Replica => Role::Replica,
    };
    let key = make(config, role)?;
    output.init(&config.node.name, role, &key)?;
    Ok(0)
}

/// Makes the state directory with the node's key and `node.json`; refuses if there is one.
///
/// A run that was interrupted between the two is finished by the next: the key is then kept. A node
/// that lost its key, and nothing else, gets a new one.
pub(crate) fn make(config: &Config, role: Role) -> anyhow::Result<PublicKey> {
    let state = &config.node.state_dir;
    mailtwin_disk::dir::create(state, 0o700)?;
    let node = Node::new(&config.node.name, role);
    if !matches!(Node::load(state), Err(NodeError::Missing { .. })) {
        if Node::load(state)
            .is_ok_and(|known| (known.name, known.role) == (node.name.clone(), role))
            && matches!(NodeKey::load(state), Err(KeyError::Missing { .. }))
        {
            return Ok(NodeKey::create(state).context("make the node's key")?.public());
        }
        node.create(state)?; // says what is there
    }
    let key = match NodeKey::load(state) {
        Ok(key) => key,
        Err(_) => NodeKey::create(state).context("make the node's key")?,
    };
    node.create(state)?;
    Ok(key.public())
}
