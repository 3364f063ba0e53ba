//! Opens this node's store as the configuration describes it.

use std::{path::Path, sync::Arc};

use anyhow::Context as _;
use mailtwin_cyrus::Login;
use mailtwin_disk::index::Index;
use mailtwin_host::{
    clock::Clock,
    config::{self, Config, Engine, Layout},
};
use mailtwin_store::{
    MailStore,
    cyrus::{Cyrus, CyrusOptions},
    maildir::{self, Maildir, MaildirOptions},
    memory::MemoryStore,
};

/// Opens it as a replica uses it.
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
        graveyard: config.replica.graveyard,
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
    let config::Cyrus { imap, csync, user, password_file, channel } = cyrus.clone();
    let password = std::fs::read_to_string(&password_file)
        .with_context(|| format!("read `cyrus.password_file` {}", password_file.display()))?;
    let password = password.lines().next().unwrap_or_default().to_owned();
    let options = CyrusOptions {
        imap,
        csync,
        login: Login { user, password },
        root: config.store.root.clone().into(),
        work_dir: config.node.state_dir.join("cyrus"),
        identity_record: config.node.state_dir.join("store.json"),
        graveyard: config.replica.graveyard,
        is_master: false,
        inbox_first: true,
        channel: channel.clone(),
    };
    let opened = Cyrus::open(options, index, clock);
    let opened = opened.with_context(|| {
        format!("open the Cyrus store whose sync-log channel is {}", channel.display())
    })?;
    Ok(Arc::new(opened))
}
