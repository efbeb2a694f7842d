/** Whatever a client writes into headers about its address, an allowlist's verdict is about where it came from. */
import { createServer, request as httpRequest, type Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { Router } from 'express';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { memoryDeviceRegistry, memoryReplayStore } from '@keyguard/core/memory';
import { createEnrollment, createRotation, createVerifier } from '@keyguard/server-verifier';
import { createApp } from '../../src/app.ts';

const INSIDE = ['10.9.9.9', '::ffff:10.9.9.9', '::ffff:0a09:0909', '2001:db8::9', '2001:0DB8:0:0::9'];
const OUTSIDE = ['203.0.113.9', '::ffff:203.0.113.9', '2001:db9::9', '11.0.0.1', '::10.9.9.9', '64:ff9b::a09:909', '::1'];
const ALLOWLIST = ['10.0.0.0/8', '2001:db8::/32'];
const PROXIES = ['192.0.2.1', '192.0.2.2'];

/** What a client sends by itself, before any proxy of ours adds to it. */
const FORGED: readonly (readonly [string, string])[][] = [
  [],
  ...[
    '10.1.1.1',
    '203.0.113.1',
    '10.1.1.1, 10.1.1.2, 10.1.1.3',
    '::ffff:10.1.1.1',
    '[2001:db8::1]',
    '[2001:db8::1]:443',
    '10.1.1.1:443',
    '127.0.0.1',
    '::1',
    'unknown',
    '_hidden',
    'for=10.1.1.1',
    '"10.1.1.1"',
    ',,,',
    '10.1.1.1,',
    ', 10.1.1.1',
    '10.1.1.1\t',
    '0x0a.1.1.1',
    '012.1.1.1',
    '167837953',
    '10.1.1',
    '2001:db8::1%eth0',
    'null',
    '__proto__',
    Array.from({ length: 500 }, () => '10.1.1.1').join(','),
    'a'.repeat(5000),
  ].map((value): [string, string][] => [['x-forwarded-for', value]]),
  [['x-forwarded-for', '10.1.1.1'], ['x-forwarded-for', '10.1.1.2']],
  ...['x-real-ip', 'x-client-ip', 'true-client-ip', 'cf-connecting-ip', 'x-cluster-client-ip', 'fastly-client-ip', 'x-original-forwarded-for', 'x-keyguard-client-address'].map((name): [string, string][] => [[name, '10.1.1.1']]),
  [['forwarded', 'for=10.1.1.1;proto=https;by=10.1.1.1']],
];

describe.each([0, 1, 2])('with %i proxies in front', (hops) => {
  let server: Server;
  let port = 0;
  let allowlist: readonly string[] = ALLOWLIST;

  beforeAll(async () => {
    const seams = { policy: { authorities: ['localhost'] as const }, registry: memoryDeviceRegistry(), replayStore: memoryReplayStore({ startedAtMs: 0 }) };
    const controlPlane = Router();
    controlPlane.get('/api/whoami', (_request, response) => void response.end('in'));
    const app = createApp({
      trustedHops: hops,
      allowedOrigins: new Set(),
      isSecure: false,
      authorities: ['localhost'],
      maxBodyBytes: () => 0,
      controlPlaneAllowlist: () => allowlist,
      health: Router(),
      verifier: createVerifier(seams),
      enrollment: createEnrollment(seams),
      rotation: createRotation(seams),
      proxy: { handler: (_request, _response, next) => next(), refuseUpgrades: (_request, _response, next) => next(), sendRejection: () => {}, endCallsOf() {}, review() {}, drain: async () => {}, close() {}, usage: () => ({ runningCalls: 0, upstreamSockets: 0, keptSockets: 0 }) },
      authenticate: async () => {},
      linkPage: Router(),
      controlPlane,
      onSeen: () => {},
      onRefused: async () => {},
      onFault: () => {},
    });
    server = createServer(app);
    await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
    ({ port } = server.address() as AddressInfo);
  });
  afterAll(() => server?.close());

  function ask(headers: readonly (readonly [string, string])[]): Promise<number> {
    return new Promise((resolve, reject) => {
      const flat = ['host', 'localhost', ...headers.flat()];
      httpRequest({ port, host: '127.0.0.1', path: '/api/whoami', headers: flat, agent: false }, (response) => response.resume().on('end', () => resolve(response.statusCode!))).on('error', reject).end();
    });
  }

  /** What arrives of a request from `address`: each proxy but the last adds the one it got it from, and the last is the socket. */
  function through(address: string, forged: readonly (readonly [string, string])[]): [string, string][] {
    const added = [address, ...PROXIES].slice(0, hops);
    if (added.length === 0) return forged.map(([name, value]) => [name, value]);
    const given = forged.filter(([name]) => name === 'x-forwarded-for').map(([, value]) => value);
    return [...forged.filter(([name]) => name !== 'x-forwarded-for').map(([name, value]): [string, string] => [name, value]), ['x-forwarded-for', [...given, ...added].join(', ')]];
  }

  it('nothing that a client sends changes the verdict', async () => {
    const wrong: unknown[] = [];
    // Without a proxy a client has the address of its socket, which is the same for all here.
    const cases = hops === 0 ? [['127.0.0.1', 403]] : [...INSIDE.map((address) => [address, 200]), ...OUTSIDE.map((address) => [address, 403])];
    for (const [address, status] of cases as [string, number][]) {
      for (const forged of FORGED) {
        const got = await ask(through(address, forged));
        if (got !== status) wrong.push([address, forged, got]);
      }
    }
    expect(wrong).toEqual([]);
  });

  it('whoever is let in by its own address is not shut out by what it sends either', async () => {
    allowlist = hops === 0 ? ['127.0.0.1'] : ['203.0.113.9'];
    const wrong: unknown[] = [];
    for (const forged of FORGED) {
      const got = await ask(through('203.0.113.9', forged));
      if (got !== 200) wrong.push([forged, got]);
    }
    expect(wrong).toEqual([]);
    allowlist = ALLOWLIST;
  });

  it('where nobody can read the allowlist, nobody is let in', async () => {
    const before = allowlist;
    const broken = ['not an address'];
    allowlist = broken;
    expect(await ask(through('10.9.9.9', []))).toBeGreaterThanOrEqual(400);
    allowlist = before;
  });
});
