import { expect, it } from 'vitest';
import { frameworkConformance, knownDevice } from '@keyguard/conformance/framework';
import { messageReceiver } from '@keyguard/server-verifier/node';
import Fastify from 'fastify';

frameworkConformance('Fastify', { folder: new URL('..', import.meta.url), scripts: ['start'] });

it("behind Fastify's own parsers: a mistake in the program, and nothing passes", async () => {
  const { verifier, signedOrder } = await knownDevice();
  const receive = messageReceiver(verifier.policy);
  const app = Fastify();
  let passed = 0;
  app.addHook('preHandler', async (request) => void (await receive(request.raw, { ip: request.ip }, (incoming) => verifier.verify(incoming))));
  app.setErrorHandler((error, _request, reply) => reply.code(500).send({ name: (error as Error).name, code: (error as { code?: string }).code }));
  app.post('/api/orders', async () => (passed += 1));
  try {
    const origin = await app.listen({ port: 0, host: '127.0.0.1' });
    const answer = await fetch(`${origin}/api/orders`, await signedOrder('/api/orders'));
    expect({ status: answer.status, body: await answer.json() as unknown, passed }).toEqual({ status: 500, body: { name: 'UsageError', code: 'invalid_option' }, passed: 0 });
  } finally {
    await app.close();
  }
});
