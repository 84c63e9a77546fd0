//! The controller's own certificates: no cert-manager is needed, and nothing is to be renewed by hand.
//!
//! An authority (a CA) is made once for all replicas and kept in a Secret; each replica makes serving certificates of it in memory,
//! anew every day. Agents and the API server are told of the authority, by a ConfigMap and by the webhook's configuration.
//!
//! Keeps true: of several replicas that start at once, one makes the authority and all use it (the Secret's resource version decides);
//! a key leaves the Secret for nobody's eyes.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::jiff::{Timestamp, ToSpan as _, tz::TimeZone};
use kube::Client;
use kube::api::{Api, Patch, PatchParams, PostParams};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;

const CERTIFICATE: &str = "ca.crt";
const KEY: &str = "ca.key";

/// How long the authority is good for, in years; taking the Secret's data away makes a new one.
const AUTHORITY_YEARS: i16 = 20;
/// How long a serving certificate is good for. A new one is made every day.
const SERVING_DAYS: i64 = 30;
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// A handshake takes no longer; who is slower is let go.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

/// How often it is looked whether others still know the authority: an upgrade of the chart may have taken it away.
const LOOK: Duration = Duration::from_secs(30);

/// Who signs.
pub struct Authority {
    certificate: String,
    key: KeyPair,
}

/// Which names a controller is known by.
#[derive(Clone, Debug)]
pub struct Names {
    /// Its namespace.
    pub namespace: String,
    /// Its Service, and what its Secret, ConfigMap and webhook are named after.
    pub name: String,
}

impl Names {
    fn secret(&self) -> String {
        format!("{}-tls", self.name)
    }

    fn config_map(&self) -> String {
        format!("{}-ca", self.name)
    }

    fn dns(&self) -> Vec<String> {
        let (name, namespace) = (&self.name, &self.namespace);
        ["", ".svc", ".svc.cluster.local"]
            .iter()
            .map(|end| format!("{name}.{namespace}{end}"))
            .chain([name.clone(), "localhost".to_owned()])
            .collect()
    }
}

impl Authority {
    /// The one that all replicas use: from the Secret, or made now and put there.
    ///
    /// # Errors
    /// When the Secret can be neither read nor written.
    pub async fn of(client: &Client, names: &Names) -> anyhow::Result<Self> {
        let secrets: Api<Secret> = Api::namespaced(client.clone(), &names.namespace);
        let name = names.secret();
        for _ in 0..10 {
            let held = secrets.get_opt(&name).await.with_context(|| format!("cannot read Secret {name}"))?;
            if let Some(authority) = held.as_ref().and_then(Self::read) {
                return Ok(authority);
            }
            let authority = Self::make()?;
            let data = BTreeMap::from([
                (CERTIFICATE.to_owned(), ByteString(authority.certificate.clone().into_bytes())),
                (KEY.to_owned(), ByteString(authority.key.serialize_pem().into_bytes())),
            ]);
            let written = match held {
                Some(mut secret) => {
                    secret.data = Some(data);
                    secrets.replace(&name, &PostParams::default(), &secret).await
                }
                None => {
                    let mut secret = Secret { data: Some(data), ..Secret::default() };
                    secret.metadata.name = Some(name.clone());
                    secrets.create(&PostParams::default(), &secret).await
                }
            };
            match written {
                Ok(_) => return Ok(authority),
                // Another replica was quicker: what it made counts.
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(error).with_context(|| format!("cannot write Secret {name}")),
            }
        }
        anyhow::bail!("Secret {name} is written by others again and again")
    }

    fn read(secret: &Secret) -> Option<Self> {
        let text = |field: &str| String::from_utf8(secret.data.as_ref()?.get(field)?.0.clone()).ok();
        let certificate = text(CERTIFICATE)?;
        CertificateDer::from_pem_slice(certificate.as_bytes()).ok()?;
        Some(Self { key: KeyPair::from_pem(&text(KEY)?).ok()?, certificate })
    }

    fn make() -> anyhow::Result<Self> {
        let key = KeyPair::generate()?;
        let certificate = Self::params()?.self_signed(&key)?.pem();
        Ok(Self { certificate, key })
    }

    fn params() -> anyhow::Result<CertificateParams> {
        let mut params = CertificateParams::new(Vec::new())?;
        params.distinguished_name.push(DnType::CommonName, "switchyard");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
        params.not_before = rcgen::date_time_ymd(i32::from(today.year()), today.month().unsigned_abs(), 1);
        let last = i32::from(today.year() + AUTHORITY_YEARS);
        params.not_after = rcgen::date_time_ymd(last, today.month().unsigned_abs(), 1);
        Ok(params)
    }

    /// Its certificate, PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// What only those know who can read the Secret: derived from the key, and telling nothing of it.
    pub fn shared_secret(&self) -> String {
        let digest = Sha256::new().chain_update(b"switchyard relay").chain_update(self.key.serialized_der()).finalize();
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// A certificate for a server of these names, good from yesterday on: clocks differ.
    fn serving(&self, names: &[String]) -> anyhow::Result<CertifiedKey> {
        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.push(DnType::CommonName, names.first().map_or("switchyard", String::as_str));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        let today = Timestamp::now().to_zoned(TimeZone::UTC).date();
        let day = |days: i64| -> anyhow::Result<_> {
            let date = today.checked_add(days.days())?;
            Ok(rcgen::date_time_ymd(i32::from(date.year()), date.month().unsigned_abs(), date.day().unsigned_abs()))
        };
        (params.not_before, params.not_after) = (day(-1)?, day(SERVING_DAYS)?);
        let key = KeyPair::generate()?;
        let issuer = Self::params()?;
        let certificate = params.signed_by(&key, &Issuer::from_params(&issuer, &self.key))?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let signing = rustls::crypto::ring::sign::any_supported_type(&key)?;
        Ok(CertifiedKey::new(vec![certificate.der().clone()], signing))
    }
}

/// The serving certificate of now.
#[derive(Debug)]
struct Current(RwLock<Arc<CertifiedKey>>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.read().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

/// What a server needs to speak TLS; its certificate is made anew every day, for as long as the process lives.
///
/// # Errors
/// When no certificate can be made.
pub fn server(authority: Arc<Authority>, names: &Names, protocol: &[u8]) -> anyhow::Result<TlsAcceptor> {
    let dns = names.dns();
    let current = Arc::new(Current(RwLock::new(Arc::new(authority.serving(&dns)?))));
    let acceptor = acceptor(current.clone(), protocol)?;
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(DAY).await;
            match authority.serving(&dns) {
                Ok(fresh) => *current.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh),
                Err(error) => tracing::warn!(%error, "cannot make a new certificate; the old one goes on"),
            }
        }
    });
    Ok(acceptor)
}

/// The same with a certificate that others see to, such as cert-manager: `tls.crt` and `tls.key` of a folder, read anew as they change.
///
/// # Errors
/// When they cannot be read.
pub fn server_with(folder: &Path, protocol: &[u8]) -> anyhow::Result<TlsAcceptor> {
    let current = Arc::new(Current(RwLock::new(Arc::new(read_pair(folder)?))));
    let acceptor = acceptor(current.clone(), protocol)?;
    let folder = folder.to_owned();
    tokio::spawn(async move {
        loop {
            tokio::time::sleep(LOOK).await;
            match read_pair(&folder) {
                Ok(fresh) => *current.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(fresh),
                Err(error) => {
                    tracing::warn!(error = format!("{error:#}"), "the certificate that was read last goes on")
                }
            }
        }
    });
    Ok(acceptor)
}

fn read_pair(folder: &Path) -> anyhow::Result<CertifiedKey> {
    let (certificates, key) = (folder.join("tls.crt"), folder.join("tls.key"));
    let chain: Result<Vec<_>, _> = CertificateDer::pem_file_iter(&certificates)
        .with_context(|| format!("cannot read {}", certificates.display()))?
        .collect();
    let chain = chain.with_context(|| format!("{} is no certificate", certificates.display()))?;
    let signing = PrivateKeyDer::from_pem_file(&key).with_context(|| format!("cannot read {}", key.display()))?;
    Ok(CertifiedKey::new(chain, rustls::crypto::ring::sign::any_supported_type(&signing)?))
}

fn acceptor(current: Arc<Current>, protocol: &[u8]) -> anyhow::Result<TlsAcceptor> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_cert_resolver(current);
    config.alpn_protocols = vec![protocol.to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// Connections after their handshakes. One that fails is nobody else's concern.
pub fn accept(listener: TcpListener, acceptor: TlsAcceptor) -> ReceiverStream<io::Result<TlsStream<TcpStream>>> {
    let (ready, connections) = mpsc::channel(64);
    tokio::spawn(async move {
        while !ready.is_closed() {
            let (stream, address) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let (acceptor, ready) = (acceptor.clone(), ready.clone());
            tokio::spawn(async move {
                // Small messages must not wait for others; a socket that refuses the option still works.
                let _ = stream.set_nodelay(true);
                match tokio::time::timeout(HANDSHAKE_WITHIN, acceptor.accept(stream)).await {
                    // The receiver is gone only when the process ends.
                    Ok(Ok(stream)) => drop(ready.send(Ok(stream)).await),
                    Ok(Err(error)) => tracing::debug!(%address, %error, "no TLS"),
                    Err(_) => tracing::debug!(%address, "a handshake took too long"),
                }
            });
        }
    });
    ReceiverStream::new(connections)
}

/// Tells agents and the API server of the authority, and goes on looking that they know it. `webhook_is_ours`: nobody else sees to
/// the webhook's certificate.
pub async fn publish(client: Client, authority: Arc<Authority>, names: Names, webhook_is_ours: bool) {
    let mut look = tokio::time::interval(LOOK);
    loop {
        look.tick().await;
        if let Err(error) = publish_once(&client, &authority, &names, webhook_is_ours).await {
            tracing::warn!(error = format!("{error:#}"), "cannot tell others of the authority");
        }
    }
}

async fn publish_once(
    client: &Client,
    authority: &Authority,
    names: &Names,
    webhook_is_ours: bool,
) -> anyhow::Result<()> {
    use k8s_openapi::api::admissionregistration::v1::ValidatingWebhookConfiguration as Webhooks;

    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &names.namespace);
    let name = names.config_map();
    let held = maps.get_opt(&name).await.with_context(|| format!("cannot read ConfigMap {name}"))?;
    let known = held.as_ref().and_then(|map| map.data.as_ref()?.get(CERTIFICATE));
    if known.map(String::as_str) != Some(authority.certificate()) {
        let data = BTreeMap::from([(CERTIFICATE.to_owned(), authority.certificate().to_owned())]);
        let mut map = held.unwrap_or_default();
        let is_new = map.metadata.name.is_none();
        (map.metadata.name, map.data) = (Some(name.clone()), Some(data));
        let written = match is_new {
            true => maps.create(&PostParams::default(), &map).await,
            false => maps.replace(&name, &PostParams::default(), &map).await,
        };
        written.with_context(|| format!("cannot write ConfigMap {name}"))?;
    }

    if !webhook_is_ours {
        return Ok(());
    }
    let webhooks: Api<Webhooks> = Api::all(client.clone());
    // Without a webhook there is nobody to tell.
    let Some(held) = webhooks.get_opt(&names.name).await.context("cannot read the webhook's configuration")? else {
        return Ok(());
    };
    let bundle = ByteString(authority.certificate().as_bytes().to_vec());
    let hooks = held.webhooks.unwrap_or_default();
    if hooks.iter().all(|hook| hook.client_config.ca_bundle.as_ref() == Some(&bundle)) {
        return Ok(());
    }
    let told: Vec<_> =
        hooks.iter().map(|hook| json!({"name": hook.name, "clientConfig": {"caBundle": bundle}})).collect();
    // Webhooks are merged by name.
    let patch = Patch::Strategic(json!({"webhooks": told}));
    webhooks
        .patch(&names.name, &PatchParams::default(), &patch)
        .await
        .context("cannot write the webhook's configuration")?;
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests fail by panicking")]
mod tests {
    use super::*;

    #[test]
    fn what_was_kept_signs_as_what_was_made() {
        let made = Authority::make().unwrap();
        let data = BTreeMap::from([
            (CERTIFICATE.to_owned(), ByteString(made.certificate.clone().into_bytes())),
            (KEY.to_owned(), ByteString(made.key.serialize_pem().into_bytes())),
        ]);
        let kept = Authority::read(&Secret { data: Some(data), ..Secret::default() }).unwrap();
        let names = Names { namespace: "switchyard".into(), name: "switchyard-controller".into() };
        let serving = kept.serving(&names.dns()).unwrap();

        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(made.certificate().as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier =
            rustls::client::WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
        let verify = |name: &str| {
            let name = rustls::pki_types::ServerName::try_from(name.to_owned()).unwrap();
            let now = rustls::pki_types::UnixTime::now();
            rustls::client::danger::ServerCertVerifier::verify_server_cert(
                &*verifier,
                &serving.cert[0],
                &[],
                &name,
                &[],
                now,
            )
        };
        for name in ["switchyard-controller.switchyard.svc", "switchyard-controller"] {
            assert!(verify(name).is_ok(), "{name}: {:?}", verify(name));
        }
        assert!(verify("other.switchyard.svc").is_err());
        assert!(Authority::read(&Secret::default()).is_none());
    }
}
