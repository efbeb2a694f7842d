import { memoryRateLimiter } from '@keyguard/server-verifier';
import { describe, expect, it, vi } from 'vitest';
import { auditSinkConformance, deviceRegistryConformance, keyProviderConformance, keyStoreConformance, RATE_LIMIT, rateLimiterConformance, replayStoreConformance, type Fullness } from '@keyguard/conformance';
import { webCryptoMacKey } from '@keyguard/core/audit';
import { aesKeyProvider, passphraseKey } from '@keyguard/core/vault';
import { memoryAuditSink, memoryDeviceRegistry, memoryKeyStore, memoryReplayStore } from '@keyguard/core/memory';

keyStoreConformance('memoryKeyStore', {
  substrate: 'memory',
  place: () => {
    const store = memoryKeyStore();
    return () => store;
  },
});

replayStoreConformance('memoryReplayStore', () => {
  let nowMs = 1_800_000_000_000;
  let serial = 0;
  const store = memoryReplayStore({ clock: { nowMs: () => nowMs }, startedAtMs: 0, capacity: 2000 });
  const claim = (): boolean => store.claim('filling', `nonce-${(serial += 1)}`, nowMs / 1000, nowMs + 1000) as boolean;
  const faults: Fullness = {
    fill: () => {
      expect(() => {
        while (claim());
      }).toThrow(expect.objectContaining({ code: 'overloaded' }));
    },
    calm: () => void (nowMs += 3000),
  };
  return { store, peer: store, nowMs: () => nowMs, advance: (ms) => void (nowMs += ms), forget: () => {}, faults };
}, { substrate: 'bounded' });

deviceRegistryConformance('memoryDeviceRegistry', () => {
  const registry = memoryDeviceRegistry();
  return {
    registry,
    peer: registry,
    nowMs: () => Date.now(),
    addCode: (code) => registry.addCode(code),
    addRotationCode: (code) => registry.addRotationCode(code),
    suspend: (deviceId) => void registry.transition(deviceId, 'suspend'),
    revoke: (deviceId) => void registry.transition(deviceId, 'revoke'),
  };
}, { substrate: 'memory' });

auditSinkConformance('memoryAuditSink', async () => {
  const macKey = await webCryptoMacKey({ keyId: 'test', key: new Uint8Array(32).fill(7) });
  const sink = memoryAuditSink({ origin: 'test', macKey });
  return { sink, peer: sink, origin: 'test', macKey };
}, { substrate: 'memory' });

rateLimiterConformance('memoryRateLimiter', () => {
  vi.useFakeTimers({ now: 1_800_000_000_000, toFake: ['Date', 'setTimeout', 'clearTimeout'] });
  const limiter = memoryRateLimiter({ perMinute: RATE_LIMIT });
  return {
    limiter,
    peer: limiter,
    windowMs: 60_000,
    nowMs: () => Date.now(),
    advance: (ms) => void vi.advanceTimersByTime(ms),
    close: () => void vi.useRealTimers(),
  };
}, { substrate: 'memory' });

keyProviderConformance('aesKeyProvider', {
  substrate: 'memory',
  place: () => {
    const key = crypto.getRandomValues(new Uint8Array(32));
    return () => aesKeyProvider({ kekId: 'kek', key });
  },
});

keyProviderConformance('passphraseKey', {
  substrate: 'memory',
  place: async () => {
    const passphrase = `correct horse ${Math.random()}`;
    const { header } = await passphraseKey(passphrase, { kekId: 'kek', iterations: 100_000 });
    return async () => (await passphraseKey(passphrase, { kekId: 'kek', header })).keyProvider;
  },
});

describe('memoryReplayStore', () => {
  const claimAt = (nowMs: number, startedAtMs: number) => {
    const clock = { nowMs: () => nowMs };
    const store = memoryReplayStore({ clock, startedAtMs });
    return (createdSeconds: number) => store.claim('key', `nonce-${createdSeconds}`, createdSeconds, (createdSeconds + 360) * 1000);
  };

  it('cannot know what was used before it started: it says so while that may be, and refuses after', () => {
    const started = 1_800_000_000_000;
    expect(() => claimAt(started + 2999, started)(1_800_000_002)).toThrow(expect.objectContaining({ name: 'UnavailableError', retryAfterMs: 1 }));
    expect(claimAt(started + 3000, started)(1_800_000_002)).toBe(false);
    expect(claimAt(started + 3000, started)(1_800_000_003)).toBe(true);
  });

  it('goes on after a clock that was ahead for a moment: it forgets again, and lets nothing back in that it forgot', () => {
    const start = 1_800_000_000;
    let nowSeconds = start;
    const store = memoryReplayStore({ clock: { nowMs: () => nowSeconds * 1000 }, startedAtMs: 0, capacity: 2 });
    const claim = (nonce: string) => store.claim('key', nonce, nowSeconds, (nowSeconds + 360) * 1000);
    expect(claim('before')).toBe(true);
    nowSeconds = start + 3600;
    expect(claim('ahead')).toBe(true);
    nowSeconds = start;
    expect(claim('before')).toBe(false);
    // One place of two is taken until the true time has reached the wrong one: the other must come free again and again.
    for (let round = 1; round <= 5; round += 1) {
      nowSeconds = start + round * 362;
      expect(claim(`round-${round}`)).toBe(true);
      expect(() => claim('no room')).toThrow(expect.objectContaining({ code: 'overloaded' }));
    }
  });

  it('forgets what expired, and costs no more for it', () => {
    let nowMs = 1_800_000_000_000;
    const store = memoryReplayStore({ clock: { nowMs: () => nowMs }, startedAtMs: 0, capacity: 1000 });
    for (let round = 0; round < 50; round += 1) {
      for (let i = 0; i < 20; i += 1) {
        const created = nowMs / 1000;
        expect(store.claim('key', `${round}-${i}`, created, (created + 360) * 1000)).toBe(true);
      }
      nowMs += 10_000;
    }
  });
});
