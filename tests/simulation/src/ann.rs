//! What most single situations begin with: ann, and a world in which she has mail.

use mailtwin_logic::{ids::Account, mailbox::MailboxName};

use crate::world::World;

/// The account that single situations are about.
pub fn ann() -> Account {
    Account::new("ann").expect("it is a good name")
}

/// A mailbox's name.
pub fn name(text: &str) -> MailboxName {
    MailboxName::new(text.as_bytes()).expect("it is a good name")
}

/// A world that runs, in which ann has a message in each of these mailboxes.
pub async fn settled(mailboxes: [&MailboxName; 2]) -> World {
    let mut world = World::new(1);
    for at in mailboxes {
        world.master.mail.store.deliver(&ann(), at, b"first\n");
    }
    world.start();
    world.settle().await.expect("nothing fails yet");
    world
}
