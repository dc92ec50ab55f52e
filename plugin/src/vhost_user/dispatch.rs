//! Owns which request goes to which call of a handler, and what a message must look like for it.
//! Never touches the socket or a window.

use std::io;
use std::os::fd::OwnedFd;

use vhost::vhost_user::VhostUserFrontendReqHandler;
use vhost::vhost_user::message::{
    BackendReq, VhostUserMMap, VhostUserMsgValidator, VhostUserSharedMsg,
};
use vm_memory::ByteValued;

use super::refusal::Refusal;
use super::wire::Message;

/// Has the handler serve a message.
pub(super) fn serve<H: VhostUserFrontendReqHandler>(
    handler: &H,
    message: &Message,
) -> Result<u64, Refusal> {
    let request = message.header.request;
    if message.header.has_unknown_flags() {
        let reason = "it has flags that the protocol does not have";
        return Err(Refusal::Message { request, reason });
    }
    let served = match BackendReq::try_from(request) {
        Ok(BackendReq::CONFIG_CHANGE_MSG) => {
            message.no_descriptor()?;
            message.no_body()?;
            handler.handle_config_change()
        }
        Ok(BackendReq::SHARED_OBJECT_ADD) => {
            message.no_descriptor()?;
            handler.shared_object_add(&message.shared_object()?)
        }
        Ok(BackendReq::SHARED_OBJECT_REMOVE) => {
            message.no_descriptor()?;
            handler.shared_object_remove(&message.shared_object()?)
        }
        Ok(BackendReq::SHARED_OBJECT_LOOKUP) => {
            handler.shared_object_lookup(&message.shared_object()?, message.descriptor()?)
        }
        Ok(BackendReq::SHMEM_MAP) => {
            handler.shmem_map(&message.body::<VhostUserMMap>()?, message.descriptor()?)
        }
        Ok(BackendReq::SHMEM_UNMAP) => {
            message.no_descriptor()?;
            handler.shmem_unmap(&message.body::<VhostUserMMap>()?)
        }
        _ => return Err(Refusal::UnknownRequest { request }),
    };
    served.map_err(|error: io::Error| Refusal::Other(error))
}

impl Message {
    fn refusal(&self, reason: &'static str) -> Refusal {
        let request = self.header.request;
        Refusal::Message { request, reason }
    }

    /// The body, as what it must be.
    fn body<T: ByteValued>(&self) -> Result<T, Refusal> {
        let body = T::from_slice(&self.body);
        body.copied()
            .ok_or_else(|| self.refusal("its body is of another length"))
    }

    fn no_body(&self) -> Result<(), Refusal> {
        if self.body.is_empty() {
            return Ok(());
        }
        Err(self.refusal("its body is of another length"))
    }

    fn shared_object(&self) -> Result<VhostUserSharedMsg, Refusal> {
        let object = self.body::<VhostUserSharedMsg>()?;
        if object.is_valid() {
            return Ok(object);
        }
        Err(self.refusal("it names no object"))
    }

    fn no_descriptor(&self) -> Result<(), Refusal> {
        if self.descriptors.taken.is_empty() && !self.descriptors.lost {
            return Ok(());
        }
        Err(self.refusal("it has a descriptor too many"))
    }

    /// The only descriptor.
    fn descriptor(&self) -> Result<&OwnedFd, Refusal> {
        let request = self.header.request;
        match self.descriptors.taken.as_slice() {
            [] if self.descriptors.lost => Err(Refusal::DescriptorLost { request }),
            [] => Err(self.refusal("it has no descriptor")),
            [one] if !self.descriptors.lost => Ok(one),
            _ => Err(self.refusal("it has a descriptor too many")),
        }
    }
}
