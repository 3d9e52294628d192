//! The connection as the redis library's own traits want it, for code that is written against them (presence).

use std::sync::Arc;

use redis::aio::ConnectionLike;
use redis::{Cmd, Pipeline, RedisError, RedisFuture, Value};

use super::line::Line;
use super::{Redis, RedisFault};

/// A handle that can be cloned at will.
#[derive(Clone)]
pub struct Link(pub Arc<Redis>);

impl Link {
    fn line(&self) -> Result<Arc<Line>, RedisError> {
        self.0.line().map_err(|fault| std::io::Error::new(std::io::ErrorKind::NotConnected, fault).into())
    }

    /// Passes an error on, and has the connection checked if it may be the connection's.
    fn looked_at<T>(&self, result: Result<T, RedisError>) -> Result<T, RedisError> {
        result.map_err(|error| match self.0.fault(error) {
            RedisFault::Unknown(error) | RedisFault::Refused(error) => error,
            other => std::io::Error::other(other).into(),
        })
    }
}

impl ConnectionLike for Link {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(async move {
            let line = self.line()?;
            let answer = match &*line {
                Line::One(connection) => connection.clone().req_packed_command(command).await,
                Line::Cluster(connection) => connection.clone().req_packed_command(command).await,
            };
            self.looked_at(answer)
        })
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        commands: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        Box::pin(async move {
            let line = self.line()?;
            let answers = match &*line {
                Line::One(connection) => {
                    connection.clone().req_packed_commands(commands, offset, count).await
                }
                Line::Cluster(connection) => {
                    connection.clone().req_packed_commands(commands, offset, count).await
                }
            };
            self.looked_at(answers)
        })
    }

    fn get_db(&self) -> i64 {
        0
    }
}
