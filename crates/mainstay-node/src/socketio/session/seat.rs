//! A connection's seat: from its first admission to its end. Until then it is one of those that wait, and may have to
//! make way.

use std::sync::Arc;

use super::Session;
use crate::engine_io::CloseKind;
use crate::metrics::Cut;
use crate::socketio::Shared;

impl Session {
    /// Begins to wait for its first admission; whoever is one too many then makes way.
    pub(in crate::socketio) fn wait(self: &Arc<Self>) {
        let Shared { pending, settings, .. } = &*self.shared;
        let address = self.connection.handshake().client();
        // The number is known before anybody can push it out.
        let mut state = self.state.lock();
        let (number, over) = pending.add(settings.connect_timeout, address, self);
        state.pending = Some(number);
        drop(state);
        over.iter().for_each(|session| session.time_is_over());
    }

    /// The time to be admitted is over.
    pub(in crate::socketio) fn time_is_over(&self) {
        if self.state.lock().pending.take().is_some() {
            self.shared.settings.metrics.cut(Cut::Pending);
            self.connection.abort(CloseKind::Orderly);
        }
    }

    /// Takes a seat, unless it has one; `false` when there is none.
    pub(super) fn take_seat(&self) -> bool {
        let mut state = self.state.lock();
        if state.seat.is_none() && !state.is_over {
            state.seat = self.shared.settings.seats.take();
        }
        let is_seated = state.seat.is_some() || state.is_over;
        let pending = state.pending.take_if(|_| is_seated);
        drop(state);
        if let Some(number) = pending {
            self.shared.pending.remove(number);
        }
        is_seated
    }
}
