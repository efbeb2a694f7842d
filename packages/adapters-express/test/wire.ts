/** The attack suites' workbench behind the Express door. */
import express, { type Express } from 'express';
import type { Carriage } from '@keyguard/core/canonical';
import type { SigningKey } from '@keyguard/core/seams';
import { wireThrough, type Door, type SignOptions, type Wire, type WireRequest, type Workbench, type WorkbenchOptions } from '@keyguard/conformance/wire';
import { enrollmentRouter, keyguard, verifiedRequest } from '@keyguard/adapters-express';

export * from '@keyguard/conformance/wire';

export const expressDoor: Door<Express> = {
  seesWire: true,
  open({ passed, ...routes }, before) {
    const app = express().enable('case sensitive routing').disable('x-powered-by');
    before?.(app);
    app.use('/api/keyguard', enrollmentRouter(routes));
    app.use('/proxy', keyguard(routes.verifier), (request, response) => void response.json(passed(verifiedRequest(request))));
    app.use((error: Error & { code?: string }, _request: express.Request, response: express.Response, _next: express.NextFunction) => {
      response.status(500).json({ code: error.code ?? 'internal_error' });
    });
    return app;
  },
  parseFirst: (app) => void app.use(express.json()),
};

export const wireIn = (carriage: Carriage): Wire<Express> => wireThrough(expressDoor, carriage);

export const openWorkbench = (options?: WorkbenchOptions<Express>): Promise<Workbench> => wireIn('headers').openWorkbench(options);

export const signed = (key: SigningKey, options?: SignOptions): Promise<WireRequest> => wireIn(options?.carriage ?? 'headers').signed(key, options);
