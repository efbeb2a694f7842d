/**
 * The one door to Redis: what the store needs of a client, the adapters that make one of ioredis or node-redis, and the options
 * under which ioredis tells an outage at once.
 *
 * This package depends on neither: the adapters take whatever has their shape. Nothing here retries.
 */

/** Sends commands to one master. */
export interface RedisClient {
  /**
   * Sends one command and resolves with its reply, or throws what Redis or the connection said. MUST NOT send a command twice, and
   * MUST throw at once, rather than keep the command for later, where there is no connection.
   */
  send(command: readonly string[]): Promise<unknown>;
}

/** The part of an `ioredis` client that is used. */
export interface Ioredis {
  /** As `Redis.call` of ioredis. */
  call(command: string, ...args: string[]): Promise<unknown>;
}

/** The part of a client of `redis` or `@redis/client` that is used. */
export interface NodeRedis {
  /** As `sendCommand` of node-redis. */
  sendCommand(command: readonly string[]): Promise<unknown>;
}

/** A client on ioredis, which MUST have been made with {@link ioredisOptions}. */
export function ioredisClient(redis: Ioredis): RedisClient {
  return { send: ([name, ...args]) => redis.call(name!, ...args) };
}

/** A client on node-redis, which MUST have been made with {@link nodeRedisOptions}. */
export function nodeRedisClient(redis: NodeRedis): RedisClient {
  return { send: (command) => redis.sendCommand(command) };
}

/** Those of ioredis's options that {@link ioredisOptions} sets. */
export interface IoredisOptions {
  readonly enableOfflineQueue: false;
  /** None: a command is sent once. */
  readonly maxRetriesPerRequest: 0;
  readonly autoResendUnfulfilledCommands: false;
  /** In milliseconds. */
  readonly connectTimeout: number;
  /** In milliseconds. */
  readonly socketTimeout: number;
  readonly retryStrategy: (attempt: number) => number;
  readonly reconnectOnError: (error: Error) => boolean;
}

const MAX_RECONNECT_DELAY_MS = 500;

/**
 * Options for `new Redis(url, { ...ioredisOptions })`: no command waits for a connection, none is sent twice, a connection on which
 * nothing comes back for a second is given up, and a new one is tried twice a second for as long as it takes. Listen to the client's
 * `error` event, as ioredis demands.
 */
export const ioredisOptions: IoredisOptions = Object.freeze({
  enableOfflineQueue: false,
  maxRetriesPerRequest: 0,
  autoResendUnfulfilledCommands: false,
  connectTimeout: 1000,
  // Without it the commands that a hung server never answers would pile up in this process.
  socketTimeout: 1000,
  retryStrategy: (attempt: number): number => Math.min(50 * 2 ** Math.min(attempt, 10), MAX_RECONNECT_DELAY_MS),
  // A master that became a replica keeps its connections: only a new one finds its successor.
  reconnectOnError: (error: Error): boolean => error.message.includes('READONLY'),
});

/** The part of node-redis's options that matters here. */
export interface NodeRedisOptions {
  readonly disableOfflineQueue: true;
  /** In milliseconds. */
  readonly pingInterval: number;
  /** The timeouts are in milliseconds. */
  readonly socket: {
    readonly connectTimeout: number;
    readonly socketTimeout: number;
    readonly reconnectStrategy: (retries: number) => number;
  };
}

/**
 * Options for `createClient({ url, ...nodeRedisOptions() })`, to the same end as {@link ioredisOptions}; new ones each time, because
 * node-redis writes into them. Those of the socket belong together: node-redis counts a second without traffic as a socket that timed
 * out, hence the pings; and by default it then stays closed for good, hence the strategy. Listen to the client's `error` event, as
 * node-redis demands.
 */
export function nodeRedisOptions(): NodeRedisOptions {
  return {
    disableOfflineQueue: true,
    pingInterval: 300,
    socket: {
      connectTimeout: 1000,
      socketTimeout: 1000,
      reconnectStrategy: (retries: number): number => Math.min(50 * 2 ** Math.min(retries, 10), MAX_RECONNECT_DELAY_MS),
    },
  };
}
