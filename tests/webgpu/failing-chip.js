// Goes before sessions/webgpu.js in test_page_chip.py: a graphics chip that fails when the test says so, as chips do.
{
  const request = GPUAdapter.prototype.requestDevice;
  const exhausted = (message) =>
    new GPUUncapturedErrorEvent("uncapturederror", { error: new GPUOutOfMemoryError(message) });
  const ways = {
    lose: (device) => device.destroy(),
    unplug(device) {
      GPU.prototype.requestAdapter = async () => null;
      device.destroy();
    },
    garble() {
      const mapped = GPUBuffer.prototype.getMappedRange;
      GPUBuffer.prototype.getMappedRange = function (...range) {
        const bytes = mapped.apply(this, range);
        if (this.usage & GPUBufferUsage.MAP_READ) new Float32Array(bytes).fill(NaN);
        return bytes;
      };
    },
    exhaust: (device) => device.dispatchEvent(exhausted("Out of memory.")),
  };
  GPUAdapter.prototype.requestDevice = async function (...values) {
    const device = await request.apply(this, values);
    new BroadcastChannel("graphics chip").onmessage = ({ data }) => ways[data](device);
    return device;
  };
}
