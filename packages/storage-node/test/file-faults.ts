/** A file system that goes wrong: what `node:fs/promises` is replaced by in the tests that import this. */
import type * as FsModule from 'node:fs/promises';
import { injectFaults, type InjectedFaults } from '@keyguard/conformance';

const failure = (code: string, errno: number): Error => Object.assign(new Error(`${code}: as the system says`), { code, errno, syscall: 'write' });

export const fileFaults: InjectedFaults = injectFaults({
  failure: () => failure('EIO', -5),
  full: () => failure('ENOSPC', -28),
});

type Fs = typeof FsModule;
type Handle = Awaited<ReturnType<Fs['open']>>;

// A full disk refuses what makes an entry or writes; it reads, renames and removes.
const NEEDS_ROOM: ReadonlySet<PropertyKey> = new Set(['writeFile', 'link', 'mkdir']);
const CALLS: ReadonlySet<PropertyKey> = new Set(['readdir', 'rename', 'stat', 'unlink', ...NEEDS_ROOM]);
const HANDLE_CALLS: ReadonlySet<PropertyKey> = new Set(['read', 'stat', 'sync', 'writeFile']);

function over<T extends object>(target: T, calls: ReadonlySet<PropertyKey>): T {
  return new Proxy(target, {
    get(inner, property): unknown {
      const value: unknown = Reflect.get(inner, property, inner);
      if (typeof value !== 'function') return value;
      const call = (...args: unknown[]): unknown => Reflect.apply(value, inner, args);
      return calls.has(property) ? (...args: unknown[]) => fileFaults.through(() => call(...args), NEEDS_ROOM.has(property)) : call;
    },
  });
}

/** Opening may fail, and then there is no handle; closing does what it says, or the test would run out of handles. */
async function open(fs: Fs, ...args: Parameters<Fs['open']>): Promise<Handle> {
  let handle: Handle | undefined;
  try {
    const needsRoom = typeof args[1] === 'string' && args[1].includes('x');
    await fileFaults.through(async () => {
      handle = await fs.open(...args);
    }, needsRoom);
    return over(handle!, HANDLE_CALLS);
  } catch (error) {
    await handle?.close();
    throw error;
  }
}

export function overFaults(fs: Fs): Fs {
  const changed = { ...over(fs, CALLS), open: (...args: Parameters<Fs['open']>) => open(fs, ...args) };
  const calls = Object.fromEntries([...CALLS].map((name) => [name, over(fs, CALLS)[name as 'stat']]));
  return { ...changed, ...calls } as Fs;
}
