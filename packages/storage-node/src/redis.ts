/**
 * KeyGuard's nonces in Redis (6.0 or later) or Valkey, for any number of processes on one master.
 *
 * Redis forgets easily: by a restart, a failover, a flush, an eviction, a clock that jumps. Each of these is noticed in the same atomic
 * step that would claim a nonce, and then nothing passes that could have passed before.
 *
 * Redis Cluster is not supported. Rate limits are not here: `redisRateLimiter` of `@keyguard/server-verifier` takes the same client.
 *
 * @see docs/decisions/0016-redis.md for what each check is there for
 */
export {
  ioredisClient,
  ioredisOptions,
  nodeRedisClient,
  nodeRedisOptions,
  type Ioredis,
  type IoredisOptions,
  type NodeRedis,
  type NodeRedisOptions,
  type RedisClient,
} from './redis/client.ts';
export {
  redisReplayStore,
  type RedisReplayStore,
  type RedisReplayStoreOptions,
  type RedisReplayStoreState,
} from './redis/nonces.ts';
