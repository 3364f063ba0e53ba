//! What the brake holds is taken out of plans: expunges and deletes wait, all else goes on.

use mailtwin_logic::{
    brake::{Look, Verdict},
    ids::Account,
    mailbox::{AccountState, MailboxName},
    plan::{self, AccountPlan, Change, Plan, Step},
};
use mailtwin_store::Reason;

use super::{Trouble, VisitError, Visitor, account::keep_unread, name_some};

impl Visitor {
    /// Takes the expunges of a mailbox out of its plan if they are held; tells of that.
    pub(super) async fn hold_expunges(
        &self,
        account: &Account,
        mailbox: &MailboxName,
        plan: &mut Plan,
    ) -> Result<Option<Trouble>, VisitError> {
        let is_expunge = |change: &Change| matches!(change, Change::Expunge(_));
        let messages = plan.changes.iter().filter(|change| is_expunge(change)).count() as u64;
        if messages == 0 {
            return Ok(None);
        }
        let verdict = match self.brake.ask(account, mailbox, messages) {
            Verdict::Look => {
                let verdict = self.judge_account(account).await?;
                if verdict == Verdict::Go {
                    self.brake.note(account, mailbox, messages);
                }
                verdict
            }
            verdict => verdict,
        };
        if verdict == Verdict::Go {
            return Ok(None);
        }
        plan.changes.retain(|change| !is_expunge(change));
        let detail = format!("the brake holds {messages} expunges: see `replctl brake show`");
        Ok(Some(Trouble { held: (messages, 0), ..Trouble::new(Reason::Brake, detail) }))
    }

    /// Judges an account as a whole.
    async fn judge_account(&self, account: &Account) -> Result<Verdict, VisitError> {
        let name = account.clone();
        let look = self.work(move |store| store.account(&name));
        let (ours, theirs) = tokio::join!(look, self.their_account(account));
        let Some(ours) = ours? else {
            let detail = format!("master: account {account} is not there");
            return Err(VisitError::Target(Trouble::new(Reason::Missing, detail)));
        };
        let (theirs, _) = theirs?;
        let mut plan = plan::account(&ours.state, &theirs);
        keep_unread(&mut plan, &ours);
        Ok(self.brake.judge(account, &Look::of(&ours.state, &theirs, &plan)))
    }

    /// Takes the deletes of mailboxes and files out of an account's plan if they are held; tells of
    /// that.
    pub(super) fn hold_deletes(
        &self,
        account: &Account,
        ours: &AccountState,
        theirs: &AccountState,
        plan: &mut AccountPlan,
    ) -> Option<Trouble> {
        let look = Look::of(ours, theirs, plan);
        let files_held = self.brake.holds(account) && !plan.remove.is_empty();
        if !look.loses() && !files_held {
            return None;
        }
        let messages_of = |name: &MailboxName| {
            let mailbox = theirs.mailboxes.iter().find(|mailbox| mailbox.name == *name);
            mailbox.map_or(0, |mailbox| u64::from(mailbox.head.messages))
        };
        if self.brake.judge(account, &look) == Verdict::Go {
            for step in &plan.steps {
                if let Step::Delete { name, .. } | Step::Reset { name, .. } = step {
                    self.brake.note(account, name, messages_of(name));
                }
            }
            return None;
        }
        let held = plan::hold(plan);
        let files = std::mem::take(&mut plan.remove).len();
        if held.is_empty() && files == 0 {
            return None; // its mailboxes tell of what they hold
        }
        let messages = held.iter().map(messages_of).sum();
        let mut what = Vec::new();
        if !held.is_empty() {
            what.push(name_some(&held));
        }
        if files > 0 {
            what.push(format!("{files} files beside the mail"));
        }
        let what = what.join(" and ");
        let detail = format!("the brake holds the deletion of {what}: see `replctl brake show`");
        let held = (messages, held.len() as u64);
        Some(Trouble { held, ..Trouble::new(Reason::Brake, detail) })
    }
}
