import 'reflect-metadata';
import type { ServerResponse } from 'node:http';
import { expect, it } from 'vitest';
import { keyguard } from '@keyguard/adapters-express';
import { frameworkConformance, knownDevice } from '@keyguard/conformance/framework';
import { Catch, Module, type ArgumentsHost, type MiddlewareConsumer } from '@nestjs/common';
import { NestFactory } from '@nestjs/core';
import type { NestExpressApplication } from '@nestjs/platform-express';

frameworkConformance('NestJS', { folder: new URL('..', import.meta.url), scripts: ['build', 'start'] });

it.each([
  ['Nest parses first by default: a mistake in the program, and nothing passes', {}, { status: 500, code: 'invalid_option', passed: 0 }],
  ['bodyParser: false leaves the bytes to the door', { bodyParser: false }, { status: 200, code: undefined, passed: 1 }],
])('as a middleware of a module: %s', async (_name, options, expected) => {
  const { verifier, signedOrder } = await knownDevice();
  let passed = 0;
  let code: unknown;
  class AppModule {
    configure(consumer: MiddlewareConsumer): void {
      consumer.apply(keyguard(verifier), (_request: unknown, response: ServerResponse) => ((passed += 1), response.end())).forRoutes('*path');
    }
  }
  Module({})(AppModule);
  class Filter {
    catch(error: { code?: unknown }, host: ArgumentsHost): void {
      ({ code } = error);
      host.switchToHttp().getResponse<ServerResponse>().writeHead(500).end();
    }
  }
  Catch()(Filter);
  const app = await NestFactory.create<NestExpressApplication>(AppModule, { ...options, logger: false });
  app.useGlobalFilters(new Filter());
  try {
    await app.listen(0, '127.0.0.1');
    const { status } = await fetch(`${await app.getUrl()}/api/orders`, await signedOrder('/api/orders'));
    expect({ status, code, passed }).toEqual(expected);
  } finally {
    await app.close();
  }
});
