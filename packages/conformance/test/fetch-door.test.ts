/**
 * The attack suites through the door for WHATWG `Request`s, in each carriage: Hono on Node, so that the bytes come over a real
 * socket and a real runtime makes the `Request` of them.
 */
import { getRequestListener, type HttpBindings } from '@hono/node-server';
import { getConnInfo } from '@hono/node-server/conninfo';
import { Hono, type Context } from 'hono';
import { describe, expect, it, vi } from 'vitest';
import { attacks, enrollmentAttacks, rotationAttacks } from '@keyguard/conformance/attacks';
import { AUTHORITY, dial, NOW_MS, send, toBytes, wireThrough, type Door, type WireRequest } from '@keyguard/conformance/wire';
import type { Carriage } from '@keyguard/core/canonical';
import { fetchDevices, fetchDoor } from '@keyguard/server-verifier/fetch';

type App = Hono<{ Bindings: HttpBindings }>;

const fetchDoorOnHono: Door<App> = {
  seesWire: false,
  open({ passed, ...routes }, before) {
    const ip = (_request: Request, context: Context): string | null => getConnInfo(context).remote.address ?? null;
    const devices = fetchDevices({ ...routes, ip });
    const guarded = fetchDoor(routes.verifier, { ip }).guarded((verified) => Response.json(passed(verified)));
    const app: App = new Hono();
    before?.(app);
    app.all('/api/keyguard/*', (context) => devices(context.req.raw, context));
    app.all('/proxy/*', (context) => guarded(context.req.raw, context));
    app.onError((error, context) => context.json({ code: (error as { code?: string }).code ?? 'internal_error' }, 500));
    return getRequestListener(app.fetch, { overrideGlobalObjects: false });
  },
  parseFirst: (app) => void app.use(async (context, next) => (await context.req.json(), next())),
};

describe.each<Carriage>(['headers', 'rfc9421'])('in the carriage %s', (carriage) => {
  describe('verification', () => {
    attacks(fetchDoorOnHono, carriage);
  });
  describe('enrollment', () => {
    enrollmentAttacks(fetchDoorOnHono, carriage);
  });
  describe('rotation', () => {
    rotationAttacks(fetchDoorOnHono, carriage);
  });
});

describe('bodies on their way', () => {
  const { openWorkbench, signed } = wireThrough(fetchDoorOnHono);
  const MEBIBYTE = 1024 * 1024;

  /** The head of a request that keeps its connection, up to where its body begins. */
  function headOf(request: WireRequest, framing: string): string {
    const lines = request.headers.map(([name, value]) => `${name}: ${value}`);
    return [`${request.method} ${request.target} HTTP/1.1`, ...lines, framing, '', ''].join('\r\n');
  }

  const next = `GET /api/keyguard/time HTTP/1.1\r\nhost: ${AUTHORITY}\r\nconnection: close\r\n\r\n`;

  it.each(['content-length', 'chunked'])('not one byte is waited for of who has not proven a key, and the connection ends (%s)', async (framing) => {
    const bench = await openWorkbench();
    const request = await signed(await bench.newKey(), { body: next });
    const line = dial(bench.port);
    const length = next.length;
    line.write(headOf(request, framing === 'chunked' ? 'transfer-encoding: chunked' : `content-length: ${length}`) + (framing === 'chunked' ? `${length.toString(16)}\r\n` : ''));
    const answer = await line.answer;
    expect(answer).toMatchObject({ status: 401, code: 'signature_invalid' });
    expect(answer.headers.get('connection')).toBe('close');
    await bench.close();
  });

  it('a body that was not read is not taken for the next request', async () => {
    const bench = await openWorkbench();
    const request = await signed(await bench.newKey(), { body: next });
    const line = dial(bench.port);
    line.write(headOf(request, `content-length: ${next.length}`) + next + next);
    expect((await line.answer).body).not.toContain('server_time');
    await bench.close();
  });

  it('the connection stays for the next request where there was nothing left to read', async () => {
    const bench = await openWorkbench();
    const used = await signed(await bench.enrolledKey());
    expect((await send(bench, used)).status).toBe(200);
    const line = dial(bench.port);
    line.write(headOf(used, `content-length: ${used.body.length}`));
    line.write(used.body);
    await vi.waitUntil(() => bench.rejections.length === 1);
    line.write(next);
    const answer = await line.answer;
    expect(answer.status).toBe(401);
    expect(answer.body).toContain(`"server_time":${NOW_MS / 1000}`);
    await bench.close();
  });

  it.each([true, false])('a caller who leaves in the middle is refused and reported, and takes nothing along (chunked: %s)', async (chunked) => {
    const bench = await openWorkbench({ policy: { authorities: [AUTHORITY], maxUnverifiedBytes: 1500 } });
    const own = await bench.enrolledKey();
    const request = await signed(own, { body: 'x'.repeat(1000) });
    const bytes = toBytes(request, { chunked }).subarray(0, -500);
    for (let i = 1; i <= 3; i += 1) {
      const line = dial(bench.port);
      line.write(bytes);
      setTimeout(() => line.leave(), 50);
      await vi.waitUntil(() => bench.rejections.length === i);
      expect(bench.rejections.at(-1)).toMatchObject({ keyId: own.keyId, error: { code: 'malformed_request', detail: 'body ended early' } });
    }
    expect(bench.passed).toHaveLength(0);
    // Neither its nonce was used nor its memory kept: the same request passes when it arrives whole.
    expect(await send(bench, request)).toMatchObject({ status: 200 });
    await bench.close();
  });

  it('that come too slowly hold what they hold until their time is over, and no longer', async () => {
    const bench = await openWorkbench({ policy: { authorities: [AUTHORITY], maxBodyBytes: 1200, maxUnverifiedBytes: 1500, bodyTimeoutMs: 300 } });
    const [slow, other] = [await bench.enrolledKey(), await bench.enrolledKey()];
    const line = dial(bench.port);
    line.write(toBytes(await signed(slow, { body: 'x'.repeat(1000) })).subarray(0, -1));
    await vi.waitUntil(async () => (await send(bench, await signed(other, { body: 'y'.repeat(1000) }))).code === 'overloaded', { timeout: 5000, interval: 1 });
    expect(await line.answer).toMatchObject({ status: 408, code: 'request_timeout' });
    expect(await send(bench, await signed(other, { body: 'y'.repeat(1000) }))).toMatchObject({ status: 200 });
    await bench.close();
  });

  it('in 300,000 chunks of one byte are read as they are, within a budget of a mebibyte', { timeout: 60_000 }, async () => {
    const bench = await openWorkbench({ policy: { authorities: [AUTHORITY], maxUnverifiedBytes: MEBIBYTE } });
    const body = new Uint8Array(300_000).fill(7);
    const request = await signed(await bench.enrolledKey(), { body });
    const line = dial(bench.port);
    line.write(headOf(request, 'connection: close\r\ntransfer-encoding: chunked'));
    line.write(Buffer.concat([...body].map((byte) => Buffer.from([0x31, 0x0d, 0x0a, byte, 0x0d, 0x0a]))));
    line.write('0\r\n\r\n');
    expect(await line.answer).toMatchObject({ status: 200 });
    expect(Buffer.from(bench.passed[0]!.body).equals(body)).toBe(true);
    await bench.close();
  });
});
