import { describe, expect, it } from 'vitest';
import { memoryDeviceRegistry, memoryReplayStore } from '@keyguard/core/memory';
import { createVerifier, definePolicy, describeRejection, ipBucket, ipMatcher, memoryRateLimiter } from '@keyguard/server-verifier';
import { RejectedError, UnavailableError } from '@keyguard/core/errors';

describe('a policy', () => {
  it('names every fault at once, and has no permissive default', () => {
    expect(() => definePolicy({ authorities: [], maxAgeSeconds: 301, maxFutureSeconds: 61, requestsPerMinute: 0, ipAllowlist: ['x'] })).toThrow(
      /authorities.*ipAllowlist.*maxAgeSeconds.*maxFutureSeconds.*requestsPerMinute|(?=.*authorities)(?=.*maxAgeSeconds)(?=.*maxFutureSeconds)(?=.*requestsPerMinute)(?=.*ipAllowlist)/s,
    );
    expect(() => definePolicy({} as never)).toThrow(expect.objectContaining({ code: 'invalid_option' }));
    for (const authority of ['Example.com', 'example.com:443', 'example.com:80', 'https://example.com', 'a b', '']) {
      expect(() => definePolicy({ authorities: [authority] })).toThrow(/authorities/);
    }
  });

  it('takes one carriage, the headers unless told otherwise, and no other word for it', () => {
    expect(definePolicy({ authorities: ['a.example'] }).carriage).toBe('headers');
    expect(definePolicy({ authorities: ['a.example'], carriage: 'rfc9421' }).carriage).toBe('rfc9421');
    for (const carriage of ['', 'RFC9421', 'both', 'any', true, ['headers', 'rfc9421']]) {
      expect(() => definePolicy({ authorities: ['a.example'], carriage: carriage as never })).toThrow(/carriage/);
    }
  });

  it('is frozen when the verifier is made: later changes of what was given change nothing', () => {
    const authorities = ['a.example'];
    const policy = definePolicy({ authorities });
    authorities.push('evil.example');
    expect(policy.authorities).toEqual(['a.example']);
    expect(() => Object.assign(policy, { maxAgeSeconds: 1e9 })).toThrow(TypeError);
    expect(() => (policy.authorities as string[]).push('evil.example')).toThrow(TypeError);
    const verifier = createVerifier({ policy: { authorities }, registry: memoryDeviceRegistry(), replayStore: memoryReplayStore() });
    expect(() => Object.assign(verifier, { verify: () => true })).toThrow(TypeError);
  });

  it('demands its seams at construction', () => {
    const policy = { authorities: ['a.example'] };
    expect(() => createVerifier({ policy, registry: undefined as never, replayStore: memoryReplayStore() })).toThrow(/registry/);
    expect(() => createVerifier({ policy, registry: memoryDeviceRegistry(), replayStore: {} as never })).toThrow(/replayStore/);
  });
});

describe('addresses', () => {
  it('match ranges of their own family; a mapped IPv4 address is an IPv4 address', () => {
    const allows = ipMatcher(['10.0.0.0/8', '2001:db8::/32', '192.0.2.7']);
    for (const ip of ['10.1.2.3', '::ffff:10.1.2.3', '2001:db8::1', '192.0.2.7']) expect(allows(ip)).toBe(true);
    for (const ip of ['11.0.0.1', '::ffff:11.0.0.1', '2001:db9::1', '192.0.2.8', '', 'x', null, '10.1.2.3.4', '10.0.0.0/8']) expect(allows(ip)).toBe(false);
    for (const odd of ['x', '10.0.0.0/33', '10.0.0/8/8', '']) expect(() => ipMatcher([odd])).toThrow(expect.objectContaining({ code: 'invalid_option' }));
  });

  it('are read as standards spell them, and not as C once did: who means 10.0.0.1 may not let in 8.0.0.1', () => {
    const spellings = ['010.0.0.1', '0x0a.0.0.1', '10.1', '167772161', '10.0.0.1 ', '10.0.0.256', '::ffff:010.0.0.1', '1::2::3'];
    const allows = ipMatcher(['0.0.0.0/0', '::/0']);
    for (const text of spellings) {
      expect([text, allows(text)]).toEqual([text, false]);
      expect(ipBucket(text)).toBe('unknown');
      expect(() => ipMatcher([text])).toThrow(expect.objectContaining({ code: 'invalid_option' }));
      expect(() => ipMatcher([`${text}/8`])).toThrow(expect.objectContaining({ code: 'invalid_option' }));
    }
    for (const range of ['10.0.0.0/', '10.0.0.0/08', '10.0.0.0/+8', '10.0.0.0/33', '::/129', 'fe80::1%eth0', 'fe80::%eth0/64']) {
      expect(() => ipMatcher([range])).toThrow(expect.objectContaining({ code: 'invalid_option' }));
    }
  });

  it('::192.0.2.7 is not 192.0.2.7, and the zone of a link-local address does not count', () => {
    expect(ipMatcher(['192.0.2.7'])('::192.0.2.7')).toBe(false);
    expect(ipMatcher(['::192.0.2.7'])('::c000:207')).toBe(true);
    expect(ipBucket('::192.0.2.7')).not.toBe(ipBucket('192.0.2.7'));
    expect(ipMatcher(['fe80::/10'])('fe80::1%eth0')).toBe(true);
    expect(ipBucket('fe80::1%eth0')).toBe(ipBucket('fe80::1%eth1'));
  });

  it('are counted by IPv4 address and by /64 of IPv6', () => {
    expect(ipBucket('::ffff:192.0.2.1')).toBe(ipBucket('192.0.2.1'));
    expect(ipBucket('2001:db8:1:2:3::1')).toBe(ipBucket('2001:db8:1:2:ffff::9'));
    expect(ipBucket('2001:db8:1:2::1')).not.toBe(ipBucket('2001:db8:1:3::1'));
    expect(ipBucket('nonsense')).toBe(ipBucket(null));
  });
});

describe('limits', () => {
  it('look without debiting, debit atomically, and honour a limit of the caller', async () => {
    const limiter = memoryRateLimiter({ perMinute: 2 });
    for (let i = 0; i < 5; i += 1) expect((await limiter.peek('a')).allowed).toBe(true);
    const decisions = await Promise.all(Array.from({ length: 4 }, () => limiter.consume('a', 1)));
    expect(decisions.map(({ allowed }) => allowed)).toEqual([true, true, false, false]);
    expect((await limiter.peek('a')).allowed).toBe(false);
    expect((await limiter.peek('a', 10)).allowed).toBe(true);
    expect((await limiter.consume('b', 1, 1)).allowed).toBe(true);
    expect(await limiter.consume('b', 1, 1)).toMatchObject({ allowed: false, limit: 1, remaining: 0 });
    expect((await limiter.peek('b', 1)).resetAtMs - Date.now()).toBeGreaterThan(50_000);
  });
});

describe('answers', () => {
  it('hold the code and a fixed text, never the detail or the cause', () => {
    const answer = describeRejection(new RejectedError('signature_invalid', 'The signature does not verify.', { detail: 'unknown key' }), 0);
    expect(answer.problem).toEqual({ title: 'Signature invalid', status: 401, detail: 'The signature does not verify.', code: 'signature_invalid' });
    const outage = describeRejection(new UnavailableError('replay_store', 'redis://user:secret@host failed', { cause: new Error('secret') }), 0);
    expect(outage).toMatchObject({ status: 503, problem: { code: 'store_unavailable' } });
    expect(JSON.stringify(outage)).not.toContain('secret');
  });

  it('never let a code of data out as if it were a code of the protocol', () => {
    expect(describeRejection(new RejectedError('vault_open_failed', 'x'), 0)).toMatchObject({ status: 400, problem: { code: 'malformed_request' } });
  });
});
