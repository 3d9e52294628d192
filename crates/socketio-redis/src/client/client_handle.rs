//! The connection as the redis library's own traits want it, for code that is written against them (presence).

use std::sync::Arc;

use redis::aio::ConnectionLike;
use redis::{Cmd, Pipeline, RedisError, RedisFuture, Value};

use super::error::CommandError;
use super::redis_client::RedisClient;
use super::redis_connection::RedisConnection;

/// A handle that can be cloned at will.
#[derive(Clone)]
pub struct ClientHandle(pub Arc<RedisClient>);

impl ClientHandle {
    fn connection(&self) -> Result<Arc<RedisConnection>, RedisError> {
        self.0
            .live_connection()
            .map_err(|fault| std::io::Error::new(std::io::ErrorKind::NotConnected, fault).into())
    }

    /// Passes an error on, and has the connection checked if it may be the connection's.
    fn check_error<T>(&self, result: Result<T, RedisError>) -> Result<T, RedisError> {
        result.map_err(|error| match self.0.classify_error(error) {
            CommandError::Unknown(error) | CommandError::Refused(error) => error,
            other => std::io::Error::other(other).into(),
        })
    }
}

impl ConnectionLike for ClientHandle {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let connection = self.connection()?;
            let answer = match &*connection {
                RedisConnection::Server(connection) => connection.clone().req_packed_command(command).await,
                RedisConnection::Cluster(connection) => connection.clone().req_packed_command(command).await,
            };
            self.check_error(answer)
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        commands: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let connection = self.connection()?;
            let answers = match &*connection {
                RedisConnection::Server(connection) => {
                    connection.clone().req_packed_commands(commands, offset, count).await
                }
                RedisConnection::Cluster(connection) => {
                    connection.clone().req_packed_commands(commands, offset, count).await
                }
            };
            self.check_error(answers)
        })
    }

    fn get_db(&self) -> i64 {
        0
    }
}
