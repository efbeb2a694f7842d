/** Clients as an application makes them, and a server whose time a test can move. */
import { createClient } from '@redis/client';
import { Redis } from 'ioredis';
import { createHash } from 'node:crypto';
import { connect, createServer, type AddressInfo, type Socket } from 'node:net';
import { ioredisClient, ioredisOptions, nodeRedisClient, nodeRedisOptions, type RedisClient } from '../src/redis.ts';
import { CLAIM_SCRIPT } from '../src/redis/claim-script.ts';

export interface Connection {
  readonly client: RedisClient;
  close(): void;
}

/** An ioredis client that is ready. Whatever breaks later is told by the commands that fail. */
export async function connectIoredis(url: string): Promise<Redis> {
  const redis = new Redis(url, { ...ioredisOptions });
  redis.on('error', () => {});
  await untilStatus(redis, 'ready');
  return redis;
}

/** Resolves when `redis` has come to that state, through whatever errors. */
export async function untilStatus(redis: Redis, status: 'ready' | 'close' | 'reconnecting'): Promise<void> {
  if (redis.status === status) return;
  await new Promise<void>((resolve) => redis.once(status, () => resolve()));
}

export const CLIENTS: readonly { readonly title: string; readonly connect: (url: string) => Promise<Connection> }[] = [
  {
    title: 'ioredis',
    connect: async (url) => {
      const redis = await connectIoredis(url);
      return { client: ioredisClient(redis), close: () => redis.disconnect() };
    },
  },
  {
    title: 'node-redis',
    connect: async (url) => {
      const redis = createClient({ url, ...nodeRedisOptions() });
      redis.on('error', () => {});
      await redis.connect();
      return { client: nodeRedisClient(redis), close: () => redis.destroy() };
    },
  },
];

export interface Proxy {
  readonly port: number;
  /** From now on it accepts, and hands nothing on; what is closed on one side stays open on the other. */
  cut(): void;
  mend(): void;
  close(): void;
}

/** A network between two parties, which a test may cut without either of them being told. */
export async function proxyTo(port: number): Promise<Proxy> {
  let isCut = false;
  const sockets = new Set<Socket>();
  const listener = createServer((inner) => {
    const outer = connect(port, '127.0.0.1');
    for (const [from, to] of [[inner, outer], [outer, inner]] as const) {
      sockets.add(from);
      from.on('error', () => {});
      from.on('data', (data) => isCut || to.write(data));
      from.on('close', () => isCut || to.destroy());
    }
  });
  await new Promise<void>((resolve) => listener.listen(0, '127.0.0.1', resolve));
  return {
    port: (listener.address() as AddressInfo).port,
    cut: () => {
      isCut = true;
    },
    mend: () => {
      isCut = false;
    },
    close(): void {
      for (const socket of sockets) socket.destroy();
      listener.close();
    },
  };
}

export interface MovedTime {
  nowMs(): number;
  /** Moves the clocks of Redis and of the processes. */
  advance(ms: number): void;
  /** Moves the clock of Redis alone. */
  advanceServer(ms: number): void;
  /** `client`, as it were then. */
  wrap(client: RedisClient): RedisClient;
}

/** Time that a test moves. Redis has no such thing: so the script is sent with another reading of its clock. */
export function movedTime(): MovedTime {
  let movedMs = 0;
  let serverMovedMs = 0;
  return {
    nowMs: () => Date.now() + movedMs,
    advance(ms): void {
      movedMs += ms;
      serverMovedMs += ms;
    },
    advanceServer(ms): void {
      serverMovedMs += ms;
    },
    wrap: (inner) => ({
      async send([name, script, ...rest]) {
        if (name === 'EVAL' && script !== CLAIM_SCRIPT) throw new Error('It is another script.');
        const moved = scriptMovedBy(serverMovedMs);
        return inner.send([name!, name === 'EVALSHA' ? createHash('sha1').update(moved).digest('hex') : moved, ...rest]);
      },
    }),
  };
}

function scriptMovedBy(ms: number): string {
  const clock = `(function(t)
    local ms = t[1] * 1000 + math.floor(t[2] / 1000) + ${ms}
    return { math.floor(ms / 1000), ms % 1000 * 1000 }
  end)(redis.call('TIME'))`;
  const moved = CLAIM_SCRIPT.replace("redis.call('TIME')", clock);
  if (moved === CLAIM_SCRIPT) throw new Error('The script does not read the clock.');
  return moved;
}
