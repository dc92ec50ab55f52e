//! Owns the decorated hypervisor: each VM that it makes is decorated. Never changes anything else.

use std::fmt;
use std::sync::Arc;

use hypervisor::arch::x86::{CpuIdEntry, MsrEntry};
use hypervisor::{CpuVendor, Hypervisor, HypervisorError, HypervisorType, HypervisorVmConfig, Vm};

use crate::error::RemapError;
use crate::options::RemapOptions;
use crate::vm::RemapVm;

type Result<T> = std::result::Result<T, HypervisorError>;

/// cloud-hypervisor's hypervisor, whose VMs are [`RemapVm`]s.
pub struct RemapHypervisor {
    inner: Arc<dyn Hypervisor>,
    options: RemapOptions,
}

impl fmt::Debug for RemapHypervisor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RemapHypervisor")
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl RemapHypervisor {
    /// Decorates `inner`; each of its VMs gets `options`.
    ///
    /// # Errors
    /// [`RemapError::NotKvm`]: another hypervisor does not follow a host mapping that changes.
    pub fn wrap(
        inner: Arc<dyn Hypervisor>,
        options: RemapOptions,
    ) -> std::result::Result<Arc<Self>, RemapError> {
        if inner.hypervisor_type() != HypervisorType::Kvm {
            return Err(RemapError::NotKvm);
        }
        Ok(Arc::new(Self { inner, options }))
    }
}

// A method with a body of its own in the trait would hide the decorated one.
#[deny(clippy::missing_trait_methods)]
impl Hypervisor for RemapHypervisor {
    fn create_vm(&self, config: HypervisorVmConfig) -> Result<Arc<dyn Vm>> {
        // With `tdx` or `sev_snp` in the hypervisor crate this has more fields, and does not
        // compile: memory that is the guest's alone cannot be exchanged behind it.
        let HypervisorVmConfig {
            nested: _,
            smt_enabled: _,
        } = config;
        let vm = self.inner.create_vm(config)?;
        let decorated = RemapVm::wrap(vm, self.options.clone());
        Ok(decorated.map_err(|error| HypervisorError::VmSetup(error.into()))?)
    }

    fn hypervisor_type(&self) -> HypervisorType {
        self.inner.hypervisor_type()
    }

    fn get_supported_cpuid(&self) -> Result<Vec<CpuIdEntry>> {
        self.inner.get_supported_cpuid()
    }

    fn get_feature_msrs(&self) -> Result<Vec<MsrEntry>> {
        self.inner.get_feature_msrs()
    }

    fn get_msr_index_list(&self) -> Result<Vec<u32>> {
        self.inner.get_msr_index_list()
    }

    fn check_required_extensions(&self) -> Result<()> {
        self.inner.check_required_extensions()
    }

    fn get_guest_debug_hw_bps(&self) -> usize {
        self.inner.get_guest_debug_hw_bps()
    }

    fn get_max_vcpus(&self) -> u32 {
        self.inner.get_max_vcpus()
    }

    fn get_cpu_vendor(&self) -> CpuVendor {
        self.inner.get_cpu_vendor()
    }

    fn enable_amx_state_components(&self) -> Result<()> {
        self.inner.enable_amx_state_components()
    }
}
