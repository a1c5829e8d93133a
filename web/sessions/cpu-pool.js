// A helper thread of the CPU session: a module worker that runs the kernels over the session's shared memory. It
// sleeps inside WebAssembly between steps and ends with terminate().

self.onmessage = ({ data: { module, memory, state, thread, stack } }) => {
  const { exports } = new WebAssembly.Instance(module, { env: { memory } });
  exports.__stack_pointer.value = stack;
  self.postMessage("ready");
  exports.serve(state, thread);
};
