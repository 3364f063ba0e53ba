//! `replctl keys rotate`: the next key of this node, told to the peers; then the change to it.

use mailtwin_host::{
    admin::{FailureCode, Response, RotatePeer, RotateReport, SCHEMA_VERSION, answer},
    codes::{KeyNews, KeyStage},
    config::Peer,
    keyring::{RotateError, Stage},
    keys::PublicKey,
};
use mailtwin_logic::{
    chain::Chain,
    wire::notice::{KeyAnswer, KeyNotice, KeyWord},
};
use tokio::task::JoinSet;

use super::Answers;

/// What an admin wants.
pub(super) struct Rotation {
    /// Change to the next key, instead of making and telling it.
    pub(super) switch: bool,
    /// Peers that need not know.
    pub(super) without: Vec<String>,
    pub(super) dry_run: bool,
}

/// Why it is not done.
struct Refused(FailureCode, String);

impl From<RotateError> for Refused {
    fn from(error: RotateError) -> Self {
        Self(FailureCode::Failed, Chain(&error).to_string())
    }
}

impl Answers {
    /// Does the next step of a rotation. Each can be repeated, and goes on where a crash, or a peer
    /// that was away, interrupted it.
    pub(super) async fn rotate(&self, rotation: Rotation) -> Response {
        let _one_at_a_time = self.changing.lock().await;
        match self.step(&rotation).await {
            Ok(report) => Response::Rotated(report),
            Err(Refused(code, message)) => answer::failed(code, message),
        }
    }

    async fn step(&self, rotation: &Rotation) -> Result<RotateReport, Refused> {
        let peers = self.peers_to_tell(&rotation.without)?;
        let (keys, refused) =
            (&self.dialers.key, |why: &str| Refused(FailureCode::Refused, why.to_owned()));
        let stage = keys.stage()?;
        match (rotation.switch, stage) {
            (false, Stage::Retiring(_)) => Err(refused(
                "the last rotation is not finished: `replctl keys rotate --switch` goes on with it",
            )),
            (true, Stage::Settled) => {
                Err(refused("there is no next key yet: run `replctl keys rotate` first"))
            }
            _ if rotation.dry_run => Ok(self.rotation(stage, false, untold(&peers, rotation))),
            (false, Stage::Settled | Stage::Prepared(_)) => {
                let next = keys.prepare()?;
                let told = self.tell(peers, rotation, KeyWord::Next, next).await;
                Ok(self.rotation(Stage::Prepared(next), true, told))
            }
            (true, Stage::Prepared(next)) => {
                let told = self.tell(peers.clone(), rotation, KeyWord::Next, next).await;
                if let Some(peer) = told.iter().find(|peer| peer.is_open()) {
                    return Err(refused(&self.not_pinned(peer, next)));
                }
                let previous = keys.switch()?;
                tracing::info!(key = %next, %previous, "this node's key was rotated");
                self.retire(peers, rotation, previous).await
            }
            (true, Stage::Retiring(previous)) => self.retire(peers, rotation, previous).await,
        }
    }

    /// The key before is nobody's any more, as soon as every peer has said so.
    async fn retire(
        &self,
        peers: Vec<Peer>,
        rotation: &Rotation,
        previous: PublicKey,
    ) -> Result<RotateReport, Refused> {
        let told = self.tell(peers, rotation, KeyWord::Gone, previous).await;
        if told.iter().any(RotatePeer::is_open) {
            return Ok(self.rotation(Stage::Retiring(previous), true, told));
        }
        self.dialers.key.settle()?;
        Ok(RotateReport { previous: Some(previous), ..self.rotation(Stage::Settled, true, told) })
    }

    fn peers_to_tell(&self, without: &[String]) -> Result<Vec<Peer>, Refused> {
        let peers = self
            .dialers
            .peers
            .all()
            .map_err(|error| Refused(FailureCode::Failed, Chain(&error).to_string()))?;
        let unknown = without.iter().find(|name| !peers.iter().any(|peer| peer.name == **name));
        match unknown {
            Some(name) => Err(Refused(FailureCode::Usage, format!("no peer is called {name:?}"))),
            None => Ok(peers),
        }
    }

    /// Tells all of `peers` at once: one that is away holds up no other.
    async fn tell(
        &self,
        peers: Vec<Peer>,
        rotation: &Rotation,
        word: KeyWord,
        key: PublicKey,
    ) -> Vec<RotatePeer> {
        let mut told = untold(&peers, rotation);
        let mut asked = JoinSet::new();
        let notice = KeyNotice { node: self.node.name.clone(), word, key: key.octets() };
        for (place, peer) in told.iter().enumerate().filter(|(_, peer)| peer.is_open()) {
            let (dialers, notice, name) = (self.dialers.clone(), notice.clone(), peer.name.clone());
            asked.spawn(async move { (place, dialers.tell(&name, &notice).await) });
        }
        while let Some(Ok((place, answer))) = asked.join_next().await {
            let Some(peer) = told.get_mut(place) else { continue };
            let done = match word {
                KeyWord::Next => KeyNews::Pinned,
                KeyWord::Gone => KeyNews::Unpinned,
            };
            let (news, detail) = match answer {
                Ok(KeyAnswer::Done) => (done, None),
                Ok(KeyAnswer::Configured) => (KeyNews::Configured, None),
                Ok(KeyAnswer::Refused(why)) | Err(why) => (KeyNews::NotTold, Some(why)),
            };
            (peer.news, peer.detail) = (news.as_str().to_owned(), detail);
        }
        told
    }

    fn rotation(&self, stage: Stage, done: bool, peers: Vec<RotatePeer>) -> RotateReport {
        let (code, next, previous) = match stage {
            Stage::Settled => (KeyStage::Settled, None, None),
            Stage::Prepared(next) => (KeyStage::Prepared, Some(next), None),
            Stage::Retiring(previous) => (KeyStage::Retiring, None, Some(previous)),
        };
        RotateReport {
            schema_version: SCHEMA_VERSION,
            done,
            node: self.node.name.clone(),
            stage: code.as_str().to_owned(),
            key: self.dialers.key.now().public(),
            next,
            previous,
            peers,
        }
    }

    fn not_pinned(&self, peer: &RotatePeer, next: PublicKey) -> String {
        let (node, RotatePeer { name, detail, .. }) = (&self.node.name, peer);
        let why = detail.as_deref().unwrap_or("nobody knows why");
        format!(
            "{name} has not pinned the next key, so this node keeps the present one: {why}; bring {name} \
             back and try again, or run `replctl keys pin {node} {next}` there and add --without {name}"
        )
    }
}

/// The peers, before any of them is told.
fn untold(peers: &[Peer], rotation: &Rotation) -> Vec<RotatePeer> {
    let of = |peer: &Peer| {
        let left_out = rotation.without.contains(&peer.name);
        let news = if left_out { KeyNews::LeftOut } else { KeyNews::NotTold };
        RotatePeer { name: peer.name.clone(), news: news.as_str().to_owned(), detail: None }
    };
    peers.iter().map(of).collect()
}
