//! A namespace of a cluster, read once, with the rights of whoever asks: for commands that only want to know how things stand.
//!
//! It reads the same objects in the same way as the watch does, and no more than one namespace at a time: a service team may not look
//! into others.

use std::sync::Arc;

use anyhow::Context as _;
use k8s_openapi::api::{core::v1 as core, discovery::v1 as discovery};
use kube::api::{Api, ApiResource, DynamicObject, ListParams};
use kube::{Client, CustomResourceExt as _, Resource};
use serde::de::DeserializeOwned;
use switchyard_crds::{CircuitPolicy, Custom, RetryPolicy, RouteRule};

use crate::object::{Kind, Object};
use crate::source::kubernetes::{key_of, read_custom};
use crate::source::{Event, typed};

/// Objects of one page of a list.
const PAGE: u32 = 500;

/// All that a namespace holds that matters, as a source tells it.
///
/// # Errors
/// When something cannot be read; the message says what, and a right that is missing.
pub async fn namespace(client: &Client, name: &str) -> anyhow::Result<Vec<Event>> {
    let mut events = Vec::new();
    // Its labels may opt its Services in; whoever may not read it must live without.
    if let Ok(namespace) = Api::<core::Namespace>::all(client.clone()).get(name).await {
        let key = key_of(Kind::Namespace, &namespace);
        events.push(Event::Applied(typed::namespace(namespace, &key.object_name())));
    }
    for service in list::<core::Service>(Api::namespaced(client.clone(), name), "Services").await? {
        let key = key_of(Kind::Service, &service);
        events.push(Event::Applied(typed::service(service, &key.object_name(), &mut Vec::new())));
    }
    for slice in list::<discovery::EndpointSlice>(Api::namespaced(client.clone(), name), "EndpointSlices").await? {
        let key = key_of(Kind::EndpointSlice, &slice);
        events.push(Event::Applied(typed::endpoint_slice(slice, &key.object_name(), &mut Vec::new())));
    }
    for pod in list::<core::Pod>(Api::namespaced(client.clone(), name), "Pods").await? {
        let key = key_of(Kind::Pod, &pod);
        events.push(Event::Applied(typed::pod(pod, &key.object_name())));
    }
    events.extend(custom::<RouteRule>(client, name, Kind::RouteRule, |o| Object::RouteRule(Arc::new(o))).await?);
    events.extend(
        custom::<CircuitPolicy>(client, name, Kind::CircuitPolicy, |o| Object::CircuitPolicy(Arc::new(o))).await?,
    );
    events.extend(custom::<RetryPolicy>(client, name, Kind::RetryPolicy, |o| Object::RetryPolicy(Arc::new(o))).await?);
    Ok(events)
}

/// The namespaces that hold rules or policies which the asking user may see.
///
/// # Errors
/// When they cannot be listed over all namespaces.
pub async fn namespaces(client: &Client) -> anyhow::Result<std::collections::BTreeSet<String>> {
    let mut found = std::collections::BTreeSet::new();
    for resource in [RouteRule::api_resource(), CircuitPolicy::api_resource(), RetryPolicy::api_resource()] {
        let api: Api<DynamicObject> = Api::all_with(client.clone(), &resource);
        let objects = list(api, &resource.plural).await?;
        found.extend(objects.into_iter().filter_map(|object| object.metadata.namespace));
    }
    Ok(found)
}

async fn custom<K: Custom>(
    client: &Client,
    namespace: &str,
    kind: Kind,
    wrap: fn(K) -> Object,
) -> anyhow::Result<Vec<Event>> {
    let resource: ApiResource = K::api_resource();
    let api: Api<DynamicObject> = Api::namespaced_with(client.clone(), namespace, &resource);
    let objects = list(api, &resource.plural).await?;
    Ok(objects.into_iter().flat_map(|object| read_custom(kind, object, wrap)).collect())
}

async fn list<K>(api: Api<K>, what: &str) -> anyhow::Result<Vec<K>>
where
    K: Resource + Clone + DeserializeOwned + std::fmt::Debug,
{
    let mut all = Vec::new();
    let mut params = ListParams::default().limit(PAGE);
    loop {
        let page = api.list(&params).await.with_context(|| format!("cannot list {what}"))?;
        all.extend(page.items);
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => params = params.continue_token(&token),
            None => return Ok(all),
        }
    }
}
