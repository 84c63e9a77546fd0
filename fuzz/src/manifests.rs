//! Reads any bytes as a file of manifests. It ends, and each place that it names is one of the text.

use std::path::Path;

use switchyard_controller::source::manifest::{self, Places};

pub(crate) fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let file = Path::new("fuzz.yaml");
    let read = manifest::read(file, text);
    let lines = text.lines().count() + 1;
    for finding in &read.findings {
        let place = finding.place.as_ref().expect("what is found in a file has a place in it");
        assert!(place.line <= lines, "line {} of {lines}: {finding:?}", place.line);
    }
    let places = Places::of_file(file, text);
    for loaded in &read.objects {
        assert!(places.field(&loaded.object.key().object_name(), "spec").is_some(), "{:?}", loaded.object.key());
    }
}
