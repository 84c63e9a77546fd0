//! The chart as a user's helm renders it.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::{Command, Output};

use serde_json::Value;

use super::audit::Right;
use super::{Cluster, repository};

impl Cluster {
    /// Runs helm on the chart, whatever comes of it: `["template", "switchyard"]`, and what follows the chart's name.
    ///
    /// # Panics
    /// When there is no helm.
    pub fn helm(&self, command: &[&str], args: &[&str]) -> Output {
        let own = self.part("helm");
        let helm = if own.exists() { own } else { PathBuf::from("helm") };
        let chart = repository().join("charts/switchyard");
        let helm = Command::new(helm).args(command).arg(chart).args(args).current_dir(repository()).output();
        helm.expect("helm is among what tests/envtest/fetch builds")
    }

    /// The chart's objects as YAML: of these templates, or all.
    ///
    /// # Panics
    /// When helm cannot render them.
    pub fn rendered(&self, templates: &[&str], args: &[&str]) -> String {
        let mut all = vec!["--namespace", "switchyard"];
        all.extend(args);
        templates.iter().for_each(|template| all.extend(["--show-only", template]));
        let rendered = self.helm(&["template", "switchyard"], &all);
        assert!(rendered.status.success(), "{}", String::from_utf8_lossy(&rendered.stderr));
        String::from_utf8(rendered.stdout).unwrap()
    }

    /// The rights that the roles of this name give, of the cluster and of the namespace `switchyard`.
    ///
    /// # Panics
    /// When they are not there.
    pub fn granted(&self, name: &str) -> BTreeSet<Right> {
        let roles = ["clusterrole", "role"].map(|kind| self.get("switchyard", kind, name));
        let rules = roles.iter().flat_map(|role| role["rules"].as_array().unwrap());
        let texts = |of: &Value| -> Vec<String> { serde_json::from_value(of.clone()).unwrap() };
        let mut rights = BTreeSet::new();
        for rule in rules {
            for (group, resource) in texts(&rule["apiGroups"])
                .iter()
                .flat_map(|group| texts(&rule["resources"]).into_iter().map(move |resource| (group, resource)))
            {
                let of = |verb| Right { group: group.clone(), resource: resource.clone(), verb };
                rights.extend(texts(&rule["verbs"]).into_iter().map(of));
            }
        }
        rights
    }
}
