//! Opens this node's store as the configuration describes it.

use std::{path::Path, sync::Arc};

use anyhow::Context as _;
use mailtwin_disk::index::Index;
use mailtwin_host::{
    clock::Clock,
    config::{self, Config, Engine, Layout},
};
use mailtwin_store::{
    MailStore,
    cyrus::{Cyrus, CyrusOptions},
    maildir::{self, Maildir, MaildirOptions, UidBookkeeping},
    memory::MemoryStore,
};

/// Opens it as a master uses it.
pub(crate) fn open(
    config: &Config,
    index: Index,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<Arc<dyn MailStore>> {
    let store = &config.store;
    if store.engine == Engine::Memory {
        return Ok(Arc::new(MemoryStore::new(&config.node.name, clock, config.replica.graveyard)));
    }
    if let Some(cyrus) = &config.cyrus {
        return open_cyrus(config, cyrus, index, clock);
    }
    let options = MaildirOptions {
        layout: match store.layout {
            Layout::MaildirPlusPlus => maildir::Layout::MaildirPlusPlus,
            Layout::Fs => maildir::Layout::Fs,
        },
        home: store.home.clone().map(Into::into),
        work_dir: store.work_dir.clone(),
        assigns_uids: true,
        uid_bookkeeping: if store.read_only {
            UidBookkeeping::ReadOnly
        } else {
            UidBookkeeping::Shared
        },
        ..MaildirOptions::new(Path::new(&store.root), &config.node.state_dir.join("store.json"))
    };
    let opened = Maildir::open(options, index, clock);
    Ok(Arc::new(opened.with_context(|| format!("open the mail store at {}", store.root))?))
}

fn open_cyrus(
    config: &Config,
    cyrus: &config::Cyrus,
    index: Index,
    clock: Arc<dyn Clock>,
) -> anyhow::Result<Arc<dyn MailStore>> {
    let servers = (cyrus.imap.clone(), cyrus.csync.clone());
    let (root, state_dir) = (Path::new(&config.store.root), &config.node.state_dir);
    let options = CyrusOptions {
        is_master: true,
        graveyard: config.replica.graveyard,
        ..CyrusOptions::new(servers, cyrus.login()?, &cyrus.channel, root, state_dir)
    };
    let opened = Cyrus::open(options, index, clock);
    let what = || format!("open the Cyrus whose sync-log channel is {}", cyrus.channel.display());
    Ok(Arc::new(opened.with_context(what)?))
}
