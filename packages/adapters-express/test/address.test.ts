/** The address that the door hands on is the one that Express would tell, whatever it was told of proxies. */
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import express, { type Express } from 'express';
import { describe, expect, it } from 'vitest';
import { RejectedError } from '@keyguard/core/errors';
import { definePolicy, type Verifier } from '@keyguard/server-verifier';
import { keyguard } from '@keyguard/adapters-express';

interface Seen {
  readonly byExpress: string | undefined;
  readonly byDoor: string | null;
}

/** Sends a request with a claimed address through `mount`, which puts the door somewhere into the application. */
async function ask(trustProxy: unknown, mount: (app: Express, door: express.RequestHandler) => void): Promise<Seen> {
  let byDoor: string | null | undefined;
  let byExpress: string | undefined;
  const verifier: Verifier = {
    policy: definePolicy({ authorities: ['api.example.com'] }),
    nowMs: () => 0,
    async verify(incoming) {
      byDoor = incoming.ip;
      throw new RejectedError('ip_not_allowed', 'Seen.');
    },
    async recheck() {
      throw new RejectedError('ip_not_allowed', 'Never asked.');
    },
  };
  const door = keyguard(verifier);
  const app = express();
  if (trustProxy !== undefined) app.set('trust proxy', trustProxy);
  mount(app, (request, response, next) => {
    byExpress = request.ip;
    void door(request, response, next);
  });
  const server = createServer(app);
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  try {
    const { port } = server.address() as AddressInfo;
    const response = await fetch(`http://127.0.0.1:${port}/inner/x`, { headers: { 'x-forwarded-for': '198.51.100.9, 203.0.113.7' } });
    expect(response.status).toBe(403);
    await response.arrayBuffer();
  } finally {
    server.closeAllConnections();
    server.close();
  }
  return { byExpress, byDoor: byDoor! };
}

const direct = (app: Express, door: express.RequestHandler): void => void app.use(door);
const mounted = (app: Express, door: express.RequestHandler): void => void app.use('/inner', express().use(door));

describe.each([
  ['an application', direct],
  ['a mounted application', mounted],
])('the address behind %s', (_, mount) => {
  it.each([
    ['nothing', undefined, '127.0.0.1'],
    ['false', false, '127.0.0.1'],
    ['no hop', 0, '127.0.0.1'],
    ['one hop', 1, '203.0.113.7'],
    ['loopback', 'loopback', '203.0.113.7'],
    ['a function', () => true, '198.51.100.9'],
    ['everyone', true, '198.51.100.9'],
  ])('trusting %s', async (_, trustProxy, expected) => {
    expect(await ask(trustProxy, mount)).toEqual({ byExpress: expected, byDoor: expected });
  });
});
