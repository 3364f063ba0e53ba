//! The links that run: one for each replica, which come and go while the agent runs.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    check::Coverage,
    link::{LinkStatus, Order},
    metrics::LinkMetrics,
    visit::Visitor,
};

/// One of them, as the rest of the agent sees it.
pub(crate) struct Running {
    pub(crate) name: String,
    /// Its sender goes when the link has ended.
    pub(crate) status: watch::Receiver<LinkStatus>,
    pub(crate) visitor: watch::Receiver<Option<Visitor>>,
    pub(crate) coverage: Arc<Coverage>,
    pub(crate) metrics: LinkMetrics,
    pub(crate) orders: mpsc::Sender<Order>,
    /// Ends this link and no other.
    pub(crate) stop: CancellationToken,
}

/// All of them, in the order in which they began.
pub(crate) struct Links(watch::Sender<Vec<Arc<Running>>>);

impl Links {
    /// None yet.
    pub(crate) fn new() -> Self {
        Self(watch::Sender::new(Vec::new()))
    }

    /// Those that run now.
    pub(crate) fn all(&self) -> Vec<Arc<Running>> {
        self.0.borrow().clone()
    }

    /// The one of this replica.
    pub(crate) fn named(&self, replica: &str) -> Option<Arc<Running>> {
        self.0.borrow().iter().find(|link| link.name == replica).cloned()
    }

    /// One has begun.
    pub(crate) fn join(&self, link: Running) {
        self.0.send_modify(|links| links.push(Arc::new(link)));
    }

    /// Takes one out, ends it, and waits until it has ended; `None` if there is none.
    pub(crate) async fn end(&self, replica: &str) -> Option<()> {
        let link = self.named(replica)?;
        self.0.send_modify(|links| links.retain(|link| link.name != replica));
        link.stop.cancel();
        let mut status = link.status.clone();
        while status.changed().await.is_ok() {}
        Some(())
    }

    /// Tells of every change from now on; and of how they are now, first.
    pub(crate) fn news(&self) -> News {
        let mut news = News { table: self.0.subscribe(), links: Vec::new() };
        news.look();
        news.links.iter_mut().for_each(watch::Receiver::mark_changed);
        news
    }
}

/// Changes of links' statuses, of links that begin later, too.
pub struct News {
    table: watch::Receiver<Vec<Arc<Running>>>,
    links: Vec<watch::Receiver<LinkStatus>>,
}

impl News {
    /// Waits until there is another link, or one less, or some link's status differs from what it
    /// was when this last returned. What is read of the links afterwards is at least as new.
    pub async fn changed(&mut self) {
        let Self { table, links } = self;
        let some_link = async {
            if links.is_empty() {
                return std::future::pending().await;
            }
            let news = links.iter_mut().map(|link| Box::pin(link.changed()));
            let _ = futures_util::future::select_all(news).await;
        };
        let others = tokio::select! {
            Ok(()) = table.changed() => true,
            () = some_link => false,
        };
        if others {
            self.look();
        }
        self.links.iter_mut().for_each(watch::Receiver::mark_unchanged);
    }

    fn look(&mut self) {
        let links = self.table.borrow_and_update().iter().map(|link| link.status.clone()).collect();
        self.links = links;
    }
}
