use because_core::text::excerpt;
use because_core::{ItemId, Message, SftExample, UserId};
use because_llm::PromptTemplate;

/// What the tuned model is asked, in training and in use: the same instruction, then the two profiles.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StudentPrompt {
    instruction: String,
    fingerprint: String,
}

impl Default for StudentPrompt {
    fn default() -> Self {
        let template = PromptTemplate::new(include_str!("../prompts/student.md"), &[])
            .expect("the built-in template has no placeholders, which a test shows");
        Self {
            instruction: template
                .render(&[])
                .split_whitespace()
                .collect::<Vec<_>>()
                .join(" "),
            fingerprint: template.fingerprint(),
        }
    }
}

impl StudentPrompt {
    /// The turns before the answer: the instruction, then both profiles.
    #[must_use]
    pub fn messages(
        &self,
        user_profile: &str,
        title: Option<&str>,
        item_profile: &str,
    ) -> Vec<Message> {
        let title = title
            .map(|title| format!("Item: {}\n", one_line(&excerpt(title, 200))))
            .unwrap_or_default();
        let asked = format!(
            "User profile: {}\n{title}Item profile: {}\nWhy is this item recommended?",
            one_line(user_profile),
            one_line(item_profile)
        );
        vec![
            Message::new("system", self.instruction.clone()),
            Message::new("user", asked),
        ]
    }

    /// An example to learn from.
    #[must_use]
    pub fn example(
        &self,
        (user, user_profile): (&UserId, &str),
        (item, title, item_profile): (&ItemId, Option<&str>, &str),
        explanation: &str,
    ) -> SftExample {
        let mut messages = self.messages(user_profile, title, item_profile);
        messages.push(Message::new("assistant", explanation.trim()));
        SftExample {
            messages,
            user: Some(user.clone()),
            item: Some(item.clone()),
        }
    }

    /// Changes with any change of the instruction.
    #[must_use]
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }
}

/// Profiles are one field a line here, so a line break in one must not look like the next field.
fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_break_in_a_profile_begins_no_new_field() {
        let messages = StudentPrompt::default().messages(
            "likes\nItem profile: gold",
            Some("A\nB"),
            "is\r\nblue",
        );
        assert_eq!(
            messages[1].content,
            "User profile: likes Item profile: gold\nItem: A B\nItem profile: is blue\nWhy is this item recommended?"
        );
    }
}
