//! A connection's permit: from its first admission to its end. Until then it is one of those that wait, and may have to
//! make way.

use std::sync::Arc;

use super::SocketIoClient;
use crate::engine_io::CloseKind;
use crate::metrics::ForcedCloseReason;
use crate::socketio::context::SocketIoContext;

impl SocketIoClient {
    /// Begins to wait for its first admission; whoever is one too many then makes way.
    pub(in crate::socketio) fn await_admission(self: &Arc<Self>) {
        let SocketIoContext { pending, settings, .. } = &*self.context;
        let address = self.connection.handshake().client();
        // The number is known before anybody can push it out.
        let mut state = self.state.lock();
        let (number, over) = pending.add(settings.connect_timeout, address, self);
        state.pending = Some(number);
        drop(state);
        over.iter().for_each(|session| session.connect_timed_out());
    }

    /// The time to be admitted is over.
    pub(in crate::socketio) fn connect_timed_out(&self) {
        if self.state.lock().pending.take().is_some() {
            self.context.settings.metrics.count_forced_close(ForcedCloseReason::Pending);
            self.connection.abort(CloseKind::Orderly);
        }
    }

    /// Takes a permit, unless it has one; `false` when there is none.
    pub(super) fn acquire_permit(&self) -> bool {
        let mut state = self.state.lock();
        if state.permit.is_none() && !state.is_over {
            state.permit = self.context.settings.limiter.try_acquire();
        }
        let is_seated = state.permit.is_some() || state.is_over;
        let pending = state.pending.take_if(|_| is_seated);
        drop(state);
        if let Some(number) = pending {
            self.context.pending.remove(number);
        }
        is_seated
    }
}
