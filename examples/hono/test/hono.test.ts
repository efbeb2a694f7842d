import { expect, it } from 'vitest';
import { frameworkConformance, knownDevice } from '@keyguard/conformance/framework';
import { fetchDoor } from '@keyguard/server-verifier/fetch';
import { Hono } from 'hono';
import { bodyLimit } from 'hono/body-limit';

frameworkConformance('Hono', { folder: new URL('..', import.meta.url), scripts: ['start'] });

it.each([
  ['json()', new Hono().use(async (context, next) => (await context.req.json(), next()))],
  ['text()', new Hono().use(async (context, next) => (await context.req.text(), next()))],
  ['arrayBuffer(), after a clone', new Hono().use(async (context, next) => (context.req.raw.clone(), await context.req.raw.arrayBuffer(), next()))],
])('%s before the door: a mistake in the program, and nothing passes', async (_name, app) => {
  const { verifier, signedOrder } = await knownDevice();
  const door = fetchDoor(verifier, { ip: () => null });
  const thrown: unknown[] = [];
  app.onError((error, context) => (thrown.push(error), context.body(null, 500)));
  app.post('/api/orders', (context) => door.guarded(() => new Response('in'))(context.req.raw));
  expect((await app.request('/api/orders', await signedOrder('/api/orders'))).status).toBe(500);
  expect(thrown).toMatchObject([{ name: 'UsageError', code: 'invalid_option' }]);
});

it("Hono's own limit of bodies may stand before the door: it hands the bytes on", async () => {
  const { verifier, signedOrder } = await knownDevice();
  const door = fetchDoor(verifier, { ip: () => null });
  const app = new Hono().use(bodyLimit({ maxSize: 1000 })).post('/api/orders', (context) => door.guarded(() => new Response('in'))(context.req.raw));
  expect(await (await app.request('/api/orders', await signedOrder('/api/orders'))).text()).toBe('in');
});
