import { pathOf, takesAtMost } from '../base/checks.js';
import { native, settled } from '../native/addon.js';
import type { NativeFdServer } from '../native/core.js';
import { ExportedHandle } from './export-handle.js';
import { checkHandle, type TensorHandle } from './handle-description.js';

// Until close(), or until their thread ends, whatever is collected.
const open = new Set<NativeFdServer>();

/** Gives a handle to each process that asks for it, until it is closed. */
export class HandleServer {
  readonly path: string;
  #server: NativeFdServer | undefined;

  /** @internal */
  constructor(server: NativeFdServer, path: string) {
    this.path = path;
    this.#server = server;
    open.add(server);
  }

  /** Removes the socket: nobody receives the handle any more. A second call does nothing. */
  close(): void {
    if (!this.#server) return;
    open.delete(this.#server);
    native().closeServer(this.#server);
    this.#server = undefined;
  }

  /** close(), for `using`. */
  [Symbol.dispose](): void {
    this.close();
  }
}

/**
 * Gives a handle to every process of this user that calls receiveHandle() with the same path, through a Unix socket
 * that is made there. The handle may be closed meanwhile; the server has a descriptor of its own. It does not keep the
 * event loop alive, and ends with its thread. INVALID_ARGUMENT for a path that is taken or has more than 107 bytes,
 * IO_ERROR.
 */
export async function serveHandle(path: string | URL, handle: TensorHandle): Promise<HandleServer> {
  takesAtMost(2, arguments, 'serveHandle');
  const where = pathOf(path, 'serveHandle');
  const { fd, description } = checkHandle(handle, 'serveHandle', '{ fd, description }');
  return new HandleServer(await settled(native().serveFd(where, fd, description)), where);
}

/**
 * The handle that serveHandle() gives at a path; importTensors() takes it, and looks whether it is one. Close it
 * afterwards. IO_ERROR where nobody serves, INVALID_ARGUMENT for another socket.
 */
export async function receiveHandle(path: string | URL): Promise<ExportedHandle> {
  takesAtMost(1, arguments, 'receiveHandle');
  const { exported, fd, text } = await settled(native().receiveFd(pathOf(path, 'receiveHandle')));
  return new ExportedHandle(exported, fd, text);
}
