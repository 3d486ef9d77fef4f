//! Where Redis is: one server, one that sentinels name, or a cluster.

use redis::IntoConnectionInfo as _;

use super::Secret;

const WANTED: &str = "an address such as redis://user:password@127.0.0.1:6379/0, redis+cluster://user:password@n1:6379,n2:6379 \
                      or redis+sentinel://user:password@s1:26379,s2:26379/NAME, with rediss in place of redis for TLS";

/// Where Redis is. Each address holds one server and is whole: scheme, credentials, host and port.
#[derive(Clone, Debug)]
pub enum RedisAddress {
    /// One server.
    One(Secret),
    /// A cluster: nodes to ask for the others.
    Cluster(Vec<Secret>),
    /// One server, which sentinels name.
    Sentinel {
        /// The sentinels, with the credentials that they want themselves.
        sentinels: Vec<Secret>,
        /// What they know the server by.
        master: String,
        /// How to talk to the server; its host is none.
        server: Secret,
    },
}

impl RedisAddress {
    /// Whether keys are spread over several servers.
    pub const fn is_cluster(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }
}

/// The parts between scheme and query.
struct Parts<'a> {
    /// `redis` or `rediss`.
    scheme: &'a str,
    /// `user:password@`, or nothing.
    user: &'a str,
    hosts: Vec<&'a str>,
    path: &'a str,
    query: Vec<(&'a str, &'a str)>,
}

impl<'a> Parts<'a> {
    fn of(scheme: &'a str, rest: &'a str) -> Self {
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = authority.rfind('@').map_or(("", authority), |at| authority.split_at(at + 1));
        let query = query.split('&').filter(|pair| !pair.is_empty()).map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        Self { scheme, user, hosts: hosts.split(',').collect(), path, query: query.collect() }
    }

    /// The address of one server.
    fn one(&self, user: &str, host: &str, port: u16, path: &str) -> Result<Secret, String> {
        let has_port = host.rsplit(']').next().is_some_and(|rest| rest.contains(':'));
        let port = if has_port { String::new() } else { format!(":{port}") };
        let url = format!("{}://{user}{host}{port}/{path}", self.scheme);
        match url.as_str().into_connection_info() {
            Ok(_) if !host.is_empty() && !host.starts_with(':') => Ok(Secret(url)),
            _ => Err(WANTED.to_owned()),
        }
    }

    fn each(&self, user: &str, port: u16) -> Result<Vec<Secret>, String> {
        self.hosts.iter().map(|host| self.one(user, host, port, "")).collect()
    }

    fn cluster(&self) -> Result<RedisAddress, String> {
        if !matches!(self.path, "" | "0") {
            return Err("no path: a Redis Cluster has no databases".to_owned());
        }
        if !self.query.is_empty() {
            return Err(WANTED.to_owned());
        }
        Ok(RedisAddress::Cluster(self.each(self.user, 6379)?))
    }

    fn sentinel(&self) -> Result<RedisAddress, String> {
        let (master, database) = self.path.split_once('/').unwrap_or((self.path, ""));
        if master.is_empty() || !master.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)) {
            return Err("a path with the name by which the sentinels know the server: redis+sentinel://s1:26379,s2:26379/NAME \
                        or …/NAME/DATABASE"
                .to_owned());
        }
        let (mut name, mut password) = ("", "");
        for (key, value) in &self.query {
            match *key {
                "sentinel_username" => name = value,
                "sentinel_password" => password = value,
                _ => return Err("no parameters but sentinel_username and sentinel_password".to_owned()),
            }
        }
        if [name, password].iter().any(|text| text.contains(['@', '/', ':', '#'])) {
            return Err("sentinel_username and sentinel_password with @ / : and # percent-encoded".to_owned());
        }
        let own = if password.is_empty() { String::new() } else { format!("{name}:{password}@") };
        let server = self.one(self.user, "sentinel.invalid", 6379, database)?;
        Ok(RedisAddress::Sentinel { sentinels: self.each(&own, 26379)?, master: master.to_owned(), server })
    }
}

pub(super) fn redis_address(text: &str) -> Result<RedisAddress, String> {
    if text.ends_with("#insecure") {
        return Err("no #insecure: a server with a certificate of its own making is trusted by AEGIS_TLS_CA_FILE".to_owned());
    }
    let (scheme, rest) = text.split_once("://").ok_or(WANTED)?;
    match scheme {
        // Several nodes can only be a cluster's.
        "redis" | "rediss" if Parts::of(scheme, rest).hosts.len() > 1 => Parts::of(scheme, rest).cluster(),
        "redis" | "rediss" if text.into_connection_info().is_ok() => Ok(RedisAddress::One(Secret(text.to_owned()))),
        "redis+cluster" | "rediss+cluster" => Parts::of(scheme.trim_end_matches("+cluster"), rest).cluster(),
        "redis+sentinel" | "rediss+sentinel" => Parts::of(scheme.trim_end_matches("+sentinel"), rest).sentinel(),
        _ => Err(WANTED.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(secrets: &[Secret]) -> Vec<&str> {
        secrets.iter().map(Secret::expose).collect()
    }

    #[test]
    fn a_list_of_nodes_is_a_cluster() {
        for text in ["rediss+cluster://u:p%40@n1:7000,[::1]", "rediss://u:p%40@n1:7000,[::1]/0"] {
            let RedisAddress::Cluster(nodes) = redis_address(text).unwrap() else { panic!("{text} is no cluster") };
            assert_eq!(texts(&nodes), ["rediss://u:p%40@n1:7000/", "rediss://u:p%40@[::1]:6379/"]);
        }
        assert!(matches!(redis_address("redis://:p@h/1").unwrap(), RedisAddress::One(_)));
    }

    #[test]
    fn sentinels_have_credentials_of_their_own() {
        let text = "redis+sentinel://u:p@s1,s2:5000/voice/3?sentinel_username=x&sentinel_password=y%2F";
        let RedisAddress::Sentinel { sentinels, master, server } = redis_address(text).unwrap() else { panic!("none") };
        assert_eq!(texts(&sentinels), ["redis://x:y%2F@s1:26379/", "redis://x:y%2F@s2:5000/"]);
        assert_eq!((master.as_str(), server.expose()), ("voice", "redis://u:p@sentinel.invalid:6379/3"));
        let RedisAddress::Sentinel { sentinels, .. } = redis_address("redis+sentinel://u:p@s1/voice").unwrap() else { panic!() };
        assert_eq!(texts(&sentinels), ["redis://s1:26379/"]);
    }
}
