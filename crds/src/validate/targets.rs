//! What a policy is attached to: each thing once.

use crate::target::TargetRef;

use super::Report;

impl Report {
    pub(super) fn targets(&mut self, targets: &[TargetRef]) {
        for (i, target) in targets.iter().enumerate() {
            let field = format!("spec.targetRefs[{i}]");
            self.require(target.group.is_empty(), format!("{field}.group"), super::TARGET_GROUP);
            self.labels(&format!("{field}.subset"), &target.subset);
            if let Some(first) = targets[..i].iter().position(|earlier| earlier == target) {
                self.error("spec.targetRefs", format!("{field} is the same target as spec.targetRefs[{first}]"));
            }
        }
    }
}
